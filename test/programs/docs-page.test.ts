/** The page at /docs: whole, self-contained, and about every operation of the document. */
import { afterAll, describe, expect, it } from 'vitest'
import { z } from 'zod'
import { Client } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'

const kernel = await startKernel()
afterAll(() => kernel[Symbol.asyncDispose]())
const client = new Client(kernel.baseUrl)

const operation = z.object({
  operationId: z.string(),
  summary: z.string(),
  description: z.string().optional(),
  security: z.array(z.record(z.string(), z.unknown())),
  parameters: z.array(z.object({ name: z.string(), description: z.string() })),
  requestBody: z
    .object({ content: z.object({ 'application/json': z.object({ example: z.unknown() }) }) })
    .optional(),
  responses: z.record(
    z.string(),
    z.object({
      description: z.string(),
      content: z.object({ 'application/json': z.object({ example: z.unknown() }) }),
    }),
  ),
})
const document = (await client.request('GET', '/v1/openapi.json')).as(
  200,
  z.object({
    info: z.object({ description: z.string() }),
    paths: z.record(z.string(), z.record(z.string(), operation)),
  }),
)
const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, entry]) => ({
    title: `${method.toUpperCase()} ${path}`,
    ...entry,
  })),
)

const answer = await client.request('GET', '/docs')
const page = answer.body.toString()

interface Tag {
  name: string
  attributes: Map<string, string>
}

const VOID = new Set(['meta', 'br', 'hr', 'img', 'input', 'link', 'source'])
const [tags, problems] = readTags(page)
const ids = tags.flatMap(({ attributes }) => attributes.get('id') ?? [])

describe('the page', () => {
  it('is HTML in UTF-8', () => {
    expect(answer.status).toBe(200)
    expect(answer.headers['content-type']).toMatch(/^text\/html; ?charset=utf-8$/i)
    expect(page).toMatch(/^<!doctype html>\n<html lang="en">/)
  })

  it('closes what it opens', () => {
    expect(problems).toEqual([])
    expect(tags.length).toBeGreaterThan(100)
  })

  it('forbids everything but its own style', () => {
    expect(answer.headers['content-security-policy']).toBe(
      "default-src 'none'; style-src 'unsafe-inline'",
    )
  })

  it('needs nothing that is fetched', () => {
    const fetching = [
      'script',
      'link',
      'img',
      'iframe',
      'object',
      'embed',
      'video',
      'audio',
      'source',
      'base',
      'form',
    ]
    expect(tags.filter(({ name }) => fetching.includes(name))).toEqual([])
    const attributes = new Set(tags.flatMap((tag) => [...tag.attributes.keys()]))
    expect([...attributes].sort()).toEqual([
      'charset',
      'class',
      'content',
      'href',
      'id',
      'lang',
      'name',
    ])
    expect(page).not.toMatch(/url\(|@import|javascript:/i)
  })

  it('links to nothing but its own sections and the document', () => {
    const targets = tags.flatMap(({ attributes }) => attributes.get('href') ?? [])
    const allowed = ['/v1/openapi.json', ...ids.map((id) => `#${id}`)]
    expect(targets.filter((target) => !allowed.includes(target))).toEqual([])
    expect(targets).toContain('/v1/openapi.json')
  })

  it('has each id once', () => {
    expect(new Set(ids).size).toBe(ids.length)
  })

  it('says how a token is sent, and of what kinds there are', () => {
    const section = textOf(sectionOf('tokens'))
    for (const part of [
      'Authorization: Bearer <token>',
      'operator',
      'sk_live_',
      'agent',
      'at_live_',
      'Retry-After',
    ]) {
      expect(section).toContain(part)
    }
  })

  it('says before anything else that what agents send is public for ever', () => {
    expect(textOf(page.slice(0, page.indexOf('<nav>')))).toContain(
      'Everything that an agent sends is public, for ever',
    )
    expect(document.info.description).toContain(
      'Everything that an agent sends is public, for ever',
    )
    for (const id of ['sendMessage', 'writeState'])
      expect(textOf(sectionOf(id))).toContain('public for ever')
  })

  it('shows code as code', () => {
    expect(page).not.toContain('`')
  })
})

describe.each(operations)('$title', ({ title, operationId, ...entry }) => {
  const section = sectionOf(operationId)
  const text = textOf(section)

  it('has a section under its id, which the navigation links to', () => {
    expect(textOf(/<h2>.*?<\/h2>/s.exec(section)?.[0] ?? '')).toBe(title)
    expect(textOf(new RegExp(`<a href="#${operationId}">.*?</a>`, 's').exec(page)?.[0] ?? '')).toBe(
      title,
    )
  })

  it('is described, with the token that it needs', () => {
    expect(text).toContain(entry.summary)
    expect(text).toContain(plain(entry.description ?? ''))
    const [level] = entry.security.flatMap((requirement) => Object.keys(requirement))
    expect(text).toContain(level ? `Needs an ${level} token.` : 'Needs no token.')
  })

  it('has its parameters', () => {
    for (const { name, description } of entry.parameters) {
      expect(text).toContain(name)
      expect(text).toContain(plain(description))
    }
  })

  it('shows the request and the answer', () => {
    const bodies = [...section.matchAll(/<pre>(.*?)<\/pre>/gs)].map(([, body = '']) =>
      JSON.parse(unescapeHtml(body)),
    )
    const request = entry.requestBody?.content['application/json']
    const answers = Object.entries(entry.responses).filter(([status]) => Number(status) < 400)
    expect(bodies).toEqual([
      ...(request ? [request.example] : []),
      ...answers.map(([, { content }]) => content['application/json'].example),
    ])
    for (const [status, { description }] of answers) {
      expect(text).toContain(`Answer ${status}`)
      expect(text).toContain(plain(description))
    }
  })

  it('has its errors, with their codes', () => {
    for (const [status, { description, content }] of Object.entries(entry.responses)) {
      if (Number(status) < 400) continue
      const { error } = z.object({ error: z.string() }).parse(content['application/json'].example)
      expect(text).toContain(`${status} ${error}`)
      expect(text).toContain(plain(description))
    }
  })
})

function sectionOf(id: string): string {
  return new RegExp(`<section id="${id}">.*?</section>`, 's').exec(page)?.[0] ?? ''
}

/** What a person reads. */
function textOf(markup: string): string {
  return unescapeHtml(markup.replace(/<[^>]*>/g, ''))
    .replace(/\s+/g, ' ')
    .trim()
}

/** A text of the document as the page shows it: backticks have become markup. */
function plain(text: string): string {
  return text.replaceAll('`', '')
}

function unescapeHtml(text: string): string {
  return text
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&quot;', '"')
    .replaceAll('&#39;', "'")
    .replaceAll('&amp;', '&')
}

/** The opening tags, and what is not closed in the order in which it was opened. */
function readTags(markup: string): [Tag[], string[]] {
  const opened: Tag[] = []
  const problems: string[] = []
  const stack: string[] = []
  for (const [tag, slash, name = '', rest = ''] of markup.matchAll(
    /<(\/?)([a-z][a-z0-9]*)([^>]*)>/gi,
  )) {
    if (slash) {
      if (stack.pop() !== name) problems.push(tag)
      continue
    }
    const attributes = [...rest.matchAll(/\s([a-z-]+)="([^"]*)"/g)].map(
      ([, key = '', value = '']) => [key, value] as const,
    )
    opened.push({ name, attributes: new Map(attributes) })
    if (!VOID.has(name)) stack.push(name)
  }
  return [opened, [...problems, ...stack]]
}

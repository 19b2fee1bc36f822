/** Reading a document as its readers do: its blocks of code, its tables, its headings and links. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

export const ROOT = join(import.meta.dirname, '..', '..')

/** @param path from the root of the repository */
export function readDocument(path: string): string {
  return readFileSync(join(ROOT, path), 'utf8')
}

/** The blocks of code in a language, in their order; an indented one counts, too. */
export function blocksOf(document: string, language: string): string[] {
  const fences = document.matchAll(/^( *)```(\S*)\n(.*?)^\1```$/gms)
  return [...fences].flatMap(([, indent = '', name, block = '']) =>
    name === language ? [block.replaceAll(new RegExp(`^${indent}`, 'gm'), '')] : [],
  )
}

/** The document without its blocks of code. */
export function proseOf(document: string): string {
  return document.replace(/^( *)```.*?^\1```$/gms, '')
}

/** What stands under a heading, up to the next one of its level or a higher one. */
export function sectionOf(document: string, heading: string): string {
  const lines = document.split('\n')
  const start = lines.indexOf(heading)
  if (start === -1) throw new Error(`There is no heading ${JSON.stringify(heading)}`)
  const level = /^#+/.exec(heading)?.[0].length ?? 0
  let isInCode = false
  const length = lines.slice(start + 1).findIndex((line) => {
    if (line.startsWith('```')) isInCode = !isInCode
    const marks = isInCode ? undefined : /^#+(?= )/.exec(line)?.[0].length
    return marks !== undefined && marks <= level
  })
  return lines.slice(start + 1, length === -1 ? undefined : start + 1 + length).join('\n')
}

/** The cells of all rows of all tables. */
export function tableRows(document: string): string[][] {
  const lines = document.split('\n').filter((line) => line.startsWith('|'))
  return lines.map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  )
}

/** The names that links to its headings use, as GitHub makes them. */
export function anchorsOf(document: string): string[] {
  const seen = new Map<string, number>()
  return [...proseOf(document).matchAll(/^#{1,6} +(.+)$/gm)].map(([, heading = '']) => {
    const text = heading.replace(/\[([^\]]+)\]\([^)]*\)/g, '$1')
    const slug = text
      .trim()
      .toLowerCase()
      .replace(/[^\p{L}\p{N}_ -]/gu, '')
      .replaceAll(' ', '-')
    const times = seen.get(slug) ?? 0
    seen.set(slug, times + 1)
    return times === 0 ? slug : `${slug}-${times}`
  })
}

/** Where its links lead. */
export function linksOf(document: string): string[] {
  return [...proseOf(document).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target = '']) => target)
}

export interface Pasted {
  readonly output: string
  readonly errors: string
}

export interface PasteOptions {
  readonly home: string
  /** Default: the root of the repository. */
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string>>
}

/**
 * Gives bash the text line by line on its standard input, as pasting does: a command that reads its
 * input would swallow lines, and an exclamation mark would be expanded from the history.
 */
export async function paste(
  text: string,
  { home, cwd = ROOT, env = {} }: PasteOptions,
): Promise<Pasted> {
  const shell = spawn('bash', ['--norc', '--noprofile'], {
    cwd,
    env: { PATH: process.env.PATH ?? '', HOME: home, HISTFILE: '', ...env },
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let output = ''
  let errors = ''
  shell.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    output += chunk
  })
  shell.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    errors += chunk
  })
  shell.stdin.end(`set -o history -o histexpand\n${text}`)
  await once(shell, 'close')
  return { output, errors }
}

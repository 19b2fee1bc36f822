/** The page of the observation service, in a real browser, with a live kernel behind it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { type Kernel, startKernel } from '../../lab/kernel.ts'
import { overflowOf, startBrowser, violationsOn, WAIT } from '../support/browser.ts'
import { runCommand } from '../support/command.ts'

const ROOT = join(import.meta.dirname, '..', '..')
const VIEWS = ['overview', 'feed', 'network', 'state', 'agents', 'transparency'] as const
const MOST_BYTES = 250 * 1_024
const kernel = await startKernel({
  RATE_LIMIT_OBSERVE_PER_MIN: '10000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '10000',
  RATE_LIMIT_MESSAGE_PER_MIN: '10000',
  LOG_LEVEL: 'error',
})
const client = new Client(kernel.baseUrl)
const browser = await startBrowser()
let page: Page
let one: Agent
let other: Agent

beforeAll(async () => {
  page = await browser.open()
})

afterAll(async () => {
  await browser[Symbol.asyncDispose]()
  await kernel[Symbol.asyncDispose]()
})

const show = (path = '', { observeUrl }: Pick<Kernel, 'observeUrl'> = kernel) =>
  page.goto(`${observeUrl}/#/${path}`)
const sees = (text: string | RegExp) => page.locator('main').getByText(text).first().waitFor()
const rows = () => page.locator('.events > li')

async function ended(child: ChildProcess) {
  child.stdout?.resume()
  const said = child.stderr ? text(child.stderr) : Promise.resolve('')
  const [exitCode] = (await once(child, 'close')) as [number | null]
  return { exitCode, stderr: await said }
}

describe('the files', () => {
  it('forbid all that is not theirs, and are compressed', async () => {
    const answer = await fetch(kernel.observeUrl)
    expect(answer.status).toBe(200)
    expect(answer.headers.get('content-type')).toBe('text/html; charset=utf-8')
    expect(answer.headers.get('content-encoding')).toBe('gzip')
    expect(answer.headers.get('cache-control')).toBe('no-cache')
    const policy = answer.headers.get('content-security-policy')
    for (const part of ["default-src 'none'", "script-src 'self'", "style-src 'self'"])
      expect(policy).toContain(part)
    expect(policy).not.toContain('unsafe')
    expect(await answer.text()).toMatch(/^<!doctype html>/)
  })

  it('have less than 250 KiB together, and assets are kept for ever', async () => {
    const paths = [
      ...(await (await fetch(kernel.observeUrl)).text()).matchAll(/"(\/assets\/[^"]+)"/g),
    ].map(([, path = '']) => path)
    expect(paths.some((path) => path.endsWith('.js'))).toBe(true)
    let bytes = 0
    for (const path of paths) {
      const answer = await fetch(kernel.observeUrl + path)
      expect(answer.status).toBe(200)
      expect(answer.headers.get('cache-control')).toBe('public, max-age=31536000, immutable')
      bytes += gzipSync(await answer.bytes()).length
    }
    expect(bytes).toBeLessThan(MOST_BYTES)
  })

  it('are answered with 304 to who has them, by HEAD without a body, and by other methods not', async () => {
    const etag = (await fetch(kernel.observeUrl)).headers.get('etag') ?? ''
    const again = await fetch(kernel.observeUrl, { headers: { 'If-None-Match': etag } })
    expect(again.status).toBe(304)
    const head = await fetch(kernel.observeUrl, { method: 'HEAD' })
    expect({ status: head.status, body: await head.text() }).toEqual({ status: 200, body: '' })
    expect((await fetch(kernel.observeUrl, { method: 'POST' })).status).toBe(405)
    for (const path of ['/observe/nothing', '/assets/nothing.js', '/elsewhere']) {
      const missing = await fetch(kernel.observeUrl + path)
      expect({ status: missing.status, body: await missing.json() }).toMatchObject({
        status: 404,
        body: { error: 'not_found' },
      })
    }
  })
})

it('an empty kernel says how to start two agents, and comes alive as they come', async () => {
  await show()
  await sees('Nobody lives here yet')
  await sees(/python3 examples\/librarian\.py/)
  ;[one, other] = [await client.registerAgent(), await client.registerAgent()]
  await sees('2 AI agents live here.')
})

it('the example agents are watched at work, from the first on', async () => {
  await using young = await startKernel({ LOG_LEVEL: 'error' })
  await show('overview', young)
  await sees('Nobody lives here yet')
  const started = [
    ['python3', 'examples/librarian.py'],
    [process.execPath, 'examples/reader.ts'],
  ].map(async ([command = '', file = '']) => {
    const env = { PATH: process.env.PATH ?? '', TABULUM_URL: young.baseUrl }
    const { exitCode, stderr } = await ended(
      spawn(command, [file, '--wait', '100'], { cwd: ROOT, env }),
    )
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' })
  })
  await sees('2 AI agents live here.')
  await sees(/said to/)
  await sees(/last event .* seen (at once|\d+ s later)/)
  await Promise.all(started)
  await show('feed', young)
  await rows().filter({ hasText: 'said to' }).first().waitFor()
  // The browser would complain of a stream that ends.
  await page.goto('about:blank')
})

it('the overview shows who is here, what happens, pairs and keys', async () => {
  await one.write('answers/6-times-7', 'forty-two')
  for (const text of ['good morning', 'how much is 6 times 7?', 'thanks'])
    await one.send(other.address, text)
  await other.receive()
  await show()
  await sees('good morning')
  await sees('3 messages')
  await sees('answers/6-times-7')
})

it('the feed tells every event in words, and what comes appears', async () => {
  await show('feed')
  await sees(/said to/)
  await one.write('live/now', 'it is now')
  await sees('it is now')
  await rows().first().getByText('wrote').waitFor()
  await rows().first().locator('.fold').click()
  await page.getByText('"type": "state_written"').waitFor()
})

it('filters work on what was and on what comes, and the link holds them', async () => {
  await show('feed')
  await page.getByLabel('messages', { exact: true }).check()
  await page.waitForURL(/type=message_sent/)
  await sees('thanks')
  await other.write('not/shown', 'a write that the filter leaves out')
  await other.send(one.address, 'a message after it')
  await sees('a message after it')
  await page.getByLabel('of the agent').fill(one.address)
  await page.getByRole('button', { name: 'Filter' }).click()
  await page.waitForURL(new RegExp(`agent=${one.address}`))
  await page.locator('main').getByText('a message after it').waitFor({ state: 'detached' })
  await sees('thanks')
  expect(await page.locator('.events > li').allTextContents()).toSatisfy((texts: string[]) =>
    texts.every((text) => text.includes('said to')),
  )
})

it('paused it counts what comes, and catches up without a gap', async () => {
  await show('feed?type=message_sent')
  await sees('thanks')
  await page.getByRole('button', { name: 'Pause' }).click()
  const texts = Array.from({ length: 5 }, (_, index) => `while paused ${index}`)
  for (const text of texts) await one.send(other.address, text)
  await page.getByText('5 new events since').waitFor()
  expect(await page.locator('main').getByText('while paused').count()).toBe(0)
  await page.getByRole('button', { name: 'Continue' }).click()
  for (const text of texts) await sees(text)
})

it('older events come by scrolling, and a link opens at an event', async () => {
  for (let index = 0; index < 130; index++) await one.write('many', `version ${index}`)
  const first = (await kernel.events()).find(({ data }) => data.value === 'version 3')
  await show(`feed?agent=${one.address}`)
  await sees('version 129')
  expect(await page.locator('main').getByText('version 3', { exact: true }).count()).toBe(0)
  await page.evaluate('scrollTo(0, document.body.scrollHeight)')
  await page.locator('main').getByText('version 3', { exact: true }).waitFor()
  await show(`feed?at=${first?.seq}`)
  await page.locator('.events > li.chosen').getByText('version 3').waitFor()
  await rows().first().getByText('version 3').waitFor()
  await page.getByText(/You look at the past/).waitFor()
  await page.getByRole('button', { name: 'What came next' }).click()
  await rows().first().getByText('version 103').waitFor()
  await page.getByRole('button', { name: 'Go to the present' }).click()
  await rows().first().getByText('version 129').waitFor()
  await page.getByText('Live: the latest is at the top.').waitFor()
})

it('the feed is searched by text and by the beginning of a key, in what was and in what comes', async () => {
  await show('feed')
  await page.getByLabel('that say').fill('GOOD morning')
  await page.getByRole('button', { name: 'Filter' }).click()
  await sees('good morning')
  await expect.poll(() => rows().count(), WAIT).toBe(1)
  await one.send(other.address, 'nothing of the kind')
  await one.send(other.address, 'a second good morning')
  await sees('a second good morning')
  expect(await rows().count()).toBe(2)
  await page.getByLabel('that say').fill('')
  await page.getByLabel('about keys that begin with').fill('answers/')
  await page.getByRole('button', { name: 'Filter' }).click()
  await sees('answers/6-times-7')
  await expect.poll(() => rows().count(), WAIT).toBe(1)
  await page.getByLabel('that say').fill('nobody ever said this')
  await page.getByRole('button', { name: 'Filter' }).click()
  await sees('No such event yet')
})

it('a message is shown with its delivery, and a conversation as one', async () => {
  const third = await client.registerAgent()
  await third.send(other.address, 'do you know the way?')
  await other.receive()
  await other.send(third.address, 'ask the librarian')
  await show('feed')
  const asked = rows().filter({ hasText: 'said to' }).filter({ hasText: 'do you know the way?' })
  await asked.getByText(/received/).waitFor()
  await rows()
    .filter({ hasText: 'received from' })
    .filter({ hasText: 'do you know the way?' })
    .waitFor()
  await asked.locator('.fold').click()
  await asked.getByRole('link', { name: 'The conversation of the two' }).click()
  await sees(/The conversation between/)
  await expect.poll(() => rows().count(), WAIT).toBe(2)
  await rows().first().getByText('ask the librarian').waitFor()
})

it('every view shows the moment that the clock is at, and the link holds it', async () => {
  const before = (await kernel.events()).find(
    ({ data }) => data.content === 'how much is 6 times 7?',
  )
  await show(`overview?at=${before?.seq}`)
  await sees('2 AI agents lived here then.')
  await sees('2 messages')
  await page.getByRole('link', { name: 'State' }).click()
  await sees('answers/')
  await sees('1 key')
  expect(await page.locator('main').getByText('projects/').count()).toBe(0)
  await page.getByRole('link', { name: 'Network' }).click()
  await sees('2')
  await page.getByRole('link', { name: 'Agents' }).click()
  await sees('2 of 2 agents')
  await page.getByRole('link', { name: 'Feed' }).click()
  await rows().first().getByText('how much is 6 times 7?').waitFor()
  expect(new URL(page.url()).hash).toContain(`at=${before?.seq}`)
  await page.getByRole('group', { name: 'The clock' }).getByText('As it was:').waitFor()
  await page.getByRole('button', { name: 'Go to the present' }).click()
  await page.getByRole('group', { name: 'The clock' }).getByText('Live').waitFor()
  expect(page.url()).not.toContain('at=')
})

it('the clock goes to a day and an hour, and runs from there to the present', async () => {
  await show('feed')
  const clock = page.getByRole('group', { name: 'The clock' })
  await clock.getByLabel('The day and the hour').fill('2020-02-03T15:00:00')
  await clock.getByRole('button', { name: 'Go there' }).click()
  await clock.getByText('Before the first event').waitFor()
  await sees('There was no such event yet.')
  const [first] = await kernel.events()
  await show(`feed?at=${first?.seq}`)
  await clock.getByLabel('Speed').selectOption('100')
  await clock.getByRole('button', { name: 'Play' }).click()
  await clock.getByText('Live').waitFor()
  await rows().first().waitFor()
})

it('the network is a table that one searches', async () => {
  await show('network')
  await page.locator('tbody tr').nth(1).waitFor()
  expect(await page.locator('tbody tr').first().textContent()).toContain('10')
  await page.getByLabel('at least so many messages').fill('2')
  await page.getByLabel('at least so many messages').press('Enter')
  await page.waitForURL(/min_count=2/)
  await page.locator('tbody tr').nth(1).waitFor({ state: 'detached' })
  await page.getByLabel('with the agent').fill('tab_nobody')
  await sees('No two agents have written to each other like that.')
})

it('the state is a tree, with values and what became of them', async () => {
  await one.write('projects/bridge/plan', '{"steps":[1,2]}')
  await one.write('projects/bridge/plan', '{"steps":[1,2,3]}')
  await show('state')
  await page.getByRole('link', { name: 'projects/' }).click()
  await page.getByRole('link', { name: 'bridge/' }).click()
  await page.getByRole('link', { name: 'projects/bridge/plan' }).click()
  const value = page.getByLabel('Value')
  await value.getByText('3 entries').waitFor()
  await value.getByText('3 entries').click()
  await value.locator('.leaf').first().waitFor({ state: 'detached' })
  await value.getByText('3 entries').click()
  await value.locator('.leaf').nth(2).waitFor()
  await page.getByRole('button', { name: 'as it was written' }).click()
  await page.getByText('{"steps":[1,2,3]}').waitFor()
  await page.locator('.versions a', { hasText: '15 bytes' }).click()
  await sees(/As it was after event/)
  await value.getByText('[1,2]').waitFor()
  await page.getByRole('link', { name: 'Show it as it is now' }).click()
  const differences = page.getByLabel('Differences from the version before')
  await differences.locator('ins').getByText('3').waitFor()
})

it('agents are listed, and each has a profile', async () => {
  await show('agents')
  await page.locator('tbody').getByTitle(one.address).click()
  await page.getByRole('heading', { name: one.address }).waitFor()
  await sees('Whom it talks to')
  await page.getByLabel('Activity of this agent').waitFor()
  await sees('version 129')
})

it('agents are found by the beginning of their address', async () => {
  await show('agents')
  await page.getByLabel('whose address begins with').fill(other.address.slice(0, 12))
  await expect.poll(() => page.locator('tbody tr').count(), WAIT).toBe(1)
  await page.locator('tbody').getByTitle(other.address).waitFor()
})

it('what was removed is shown as such in every view, and in the transparency log', async () => {
  await one.write('illegal/key', 'illegal value')
  const { message_id } = await one.send(other.address, 'illegal words')
  await show('feed')
  await sees('illegal words')
  const why = ['--reason', 'court order 12', '--yes']
  for (const what of [
    ['state', '--key', 'illegal/key'],
    ['message', '--id', message_id],
  ])
    expect(await runCommand(kernel.dataDir, 'remove', ...what, ...why)).toMatchObject({ code: 0 })
  await sees('A message was removed by the operator of the infrastructure')
  await show('overview')
  await show('feed')
  await expect.poll(() => page.locator('main .redacted').count(), WAIT).toBe(2)
  expect(await page.locator('main').textContent()).not.toMatch(/illegal (value|words)/)
  await page.locator('main .redacted').first().click()
  await sees('2 removed.')
  await sees('court order 12')
  await show('state?key=illegal/key')
  await sees(/removed by the operator of the infrastructure/)
  const written = (await kernel.events()).find(({ data }) => data.key === 'illegal/key')
  await show(`state?key=illegal/key&at=${written?.seq}`)
  await sees(/removed by the operator of the infrastructure/)
  expect(await page.locator('main').textContent()).not.toContain('illegal value')
})

it('the timeline takes all views to the moment that was chosen', async () => {
  await show('state')
  const slider = page.getByLabel('All that happened, over time')
  await slider.focus()
  await slider.press('Home')
  await slider.press('Enter')
  await page.waitForURL(/state\?at=\d+/)
  await page.getByRole('button', { name: 'Show less of the time' }).click()
  await slider.waitFor()
  await page.getByRole('button', { name: 'Show all of the time' }).click()
  await slider.waitFor()
})

it('hostile content is text and breaks no layout', async () => {
  const hostile = [
    '<script>globalThis.ran = true</script><img src=x onerror="globalThis.ran = true">',
    'w'.repeat(30_000),
    '\u202Eright to left\u202D \u200B\u200D\uFEFF مرحبا',
    '\u0000\u0001\u001B[31m\u0007',
  ]
  for (const text of hostile) {
    await one.send(other.address, text)
    await one.write(`hostile/${text.slice(0, 200)}`, text)
  }
  await one.write('hostile/a key\nof two lines', 'two lines')
  const address = one.address
  await page.setViewportSize({ width: 320, height: 640 })
  onTestFinished(() => page.setViewportSize({ width: 1280, height: 800 }))
  const key = (text: string) => `state?${new URLSearchParams({ key: text })}`
  const places = [
    ...VIEWS,
    `agents?address=${address}`,
    key(`hostile/${hostile[0]}`),
    key(`hostile/${'w'.repeat(200)}`),
  ]
  for (const place of [...places, 'state?prefix=hostile/', key('hostile/a key\nof two lines')]) {
    await show(place)
    await page.waitForLoadState('networkidle').catch(() => undefined)
    if (place === 'feed') await sees('<script>')
    if (place.startsWith('state?key')) await page.getByLabel('Value').waitFor()
    expect(await page.evaluate('globalThis.ran'), place).toBeUndefined()
    expect(await overflowOf(page), place).toBe(0)
  }
  await show('feed')
  await sees(/⟨U\+202E⟩right to left/)
  await page.locator('.events > li', { hasText: 'wwww' }).first().locator('.fold').click()
  await page.getByRole('button', { name: /Show all .* characters/ }).click()
  expect(await overflowOf(page)).toBe(0)
})

it.each(['light', 'dark'] as const)(
  'nothing in any view keeps people out, %s',
  async (colorScheme) => {
    await page.emulateMedia({ colorScheme, reducedMotion: 'reduce' })
    const places = [
      ...VIEWS,
      `agents?address=${one.address}`,
      'state?key=answers/6-times-7',
      'feed?type=message_sent',
    ]
    for (const place of places) {
      await show(place)
      await page.locator('main :is(li, td, dd, .quiet)').first().waitFor()
      await expect.poll(() => page.locator('main').getByText('Loading…').count(), WAIT).toBe(0)
      expect(await violationsOn(page), place).toEqual([])
    }
  },
)

it.each([1280, 390])(
  'nothing that is shown is moved by what comes after it, %i pixels wide',
  async (width) => {
    const tab = await browser.open()
    onTestFinished(() => tab.close())
    await tab.setViewportSize({ width, height: 844 })
    await tab.addInitScript(`
    globalThis.moved = 0
    new PerformanceObserver((list) => {
      for (const { value, hadRecentInput } of list.getEntries()) if (!hadRecentInput) moved += value
    }).observe({ type: 'layout-shift', buffered: true })
  `)
    for (const view of VIEWS) {
      await tab.goto('about:blank')
      await tab.goto(`${kernel.observeUrl}/#/${view}`)
      await tab.locator('main :is(li, td, dd, .quiet)').first().waitFor()
      await expect.poll(() => tab.getByText('Loading…').count(), WAIT).toBe(0)
      // What Lighthouse takes for good.
      expect(await tab.evaluate('moved'), view).toBeLessThan(0.1)
    }
  },
)

it('nothing was blocked, and nothing failed', () => {
  expect(browser.complaints).toEqual([])
})

it('says that the service is gone, and goes on where it was when it is back', async () => {
  await using mortal = await startKernel({ LOG_LEVEL: 'error' })
  const agent = await new Client(mortal.baseUrl).registerAgent()
  await agent.write('before', 'it went')
  await show('feed', mortal)
  await sees('it went')
  await mortal.kill()
  await page
    .getByRole('alert')
    .getByText(/connection was lost|does not answer/)
    .waitFor()
  const { port: observe } = new URL(mortal.observeUrl)
  const { port } = new URL(mortal.baseUrl)
  await using reborn = await startKernel(
    { LOG_LEVEL: 'error', OBSERVE_PORT: observe, PORT: port },
    { dataDir: mortal.dataDir },
  )
  expect(reborn.observeUrl).toBe(mortal.observeUrl)
  await agent.write('after', 'it came back')
  await sees('it came back')
  await sees('it went')
  await page.getByText('live', { exact: true }).waitFor()
})

it('says when it asked too often', async () => {
  await using strict = await startKernel({ RATE_LIMIT_OBSERVE_PER_MIN: '2', LOG_LEVEL: 'error' })
  await show('overview', strict)
  await page
    .getByRole('alert')
    .getByText(/You asked more often than one client may/)
    .waitFor()
})

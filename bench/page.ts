/**
 * The page on which one watches, in a real browser: how soon it is usable, how quickly it gets
 * anywhere, and what it bears.
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Page } from 'playwright-core'
import { openBrowser } from '../lab/browser.ts'
import { Client } from '../lab/client.ts'
import { startKernel } from '../lab/kernel.ts'
import { seededRandom } from '../lab/random.ts'
import { median } from './load.ts'

const COLD_STARTS = 7
const JUMPS = 25
const VISIBLE_RATE = 100
const FLOOD_RATE = 5_000
const FLOOD_EVERY_MS = 20
const CLICK_EVERY_MS = 2_000

/**
 * Of a service that has a log: how long until the first view is usable, without anything in the
 * cache, and until a jump to any event is shown.
 */
export async function benchPage(
  url: string,
  seqs: readonly number[],
): Promise<Record<string, number>> {
  const random = seededRandom(3)
  const cold: number[] = []
  for (let run = 0; run < COLD_STARTS; run++) {
    await using browser = await openBrowser()
    const page = await browser.context.newPage()
    const begin = performance.now()
    await page.goto(url)
    await page.locator('.figures dd a', { hasText: /\d/ }).first().waitFor()
    await page.locator('.events li').nth(3).waitFor()
    await page.locator('.ranking li').nth(3).waitFor()
    cold.push(performance.now() - begin)
  }
  await using browser = await openBrowser()
  const page = await browser.context.newPage()
  await page.goto(`${url}/#/feed`)
  await page.locator('.events li').nth(3).waitFor()
  const jumps: number[] = []
  for (let jump = 0; jump < JUMPS; jump++) {
    const seq = seqs[Math.floor(random() * seqs.length)] ?? 0
    jumps.push((await page.evaluate(jumpTo(seq))) as number)
  }
  return {
    'page: first view, ms': median(cold),
    'page: a jump, p50 ms': median(jumps),
    'page: a jump, at most ms': Math.max(...jumps),
  }
}

/** In the browser: until the event is the first of the list, and drawn. */
const jumpTo = (seq: number) => `new Promise((resolve) => {
  const begin = performance.now()
  const look = () => {
    const row = document.querySelector('.events > li.chosen')
    if (row?.querySelector('.fold')?.getAttribute('aria-label') === 'Event ${seq} as JSON')
      requestAnimationFrame(() => resolve(performance.now() - begin))
    else requestAnimationFrame(look)
  }
  location.hash = '#/feed?at=${seq}'
  look()
})`

/** How late an event of a live kernel is seen, at 100 events a second. */
export async function benchVisible(seconds: number): Promise<Record<string, number>> {
  await using kernel = await startKernel({
    RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
    LOG_LEVEL: 'error',
  })
  const [agent] = await new Client(kernel.baseUrl).registerAgents(1)
  if (agent === undefined) throw new Error('an agent was asked for')
  await using browser = await openBrowser()
  const page = await browser.context.newPage()
  await page.goto(`${kernel.observeUrl}/#/feed`)
  await page.getByText('Live: the latest is at the top.').waitFor()
  await page.evaluate(WATCH_TIMES)
  let written = 0
  const begin = performance.now()
  while (performance.now() < begin + seconds * 1_000) {
    await agent.write('seen', String(Date.now()))
    written++
    const due = begin + (written * 1_000) / VISIBLE_RATE
    if (due > performance.now()) await sleep(due - performance.now())
  }
  await sleep(2_000)
  const late = (await page.evaluate('globalThis.late')) as number[]
  const sorted = late.toSorted((one, other) => one - other)
  return {
    'visible: events a second': written / seconds,
    'visible: seen of all, %': (100 * late.length) / written,
    'visible: p50 ms': sorted[Math.floor(0.5 * sorted.length)] ?? Number.NaN,
    'visible: p99 ms': sorted[Math.floor(0.99 * sorted.length)] ?? Number.NaN,
  }
}

/** In the browser: notes of each row that appears how old what it says is. */
const WATCH_TIMES = `{
  globalThis.late = []
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes)
      for (const node of addedNodes) {
        const written = /seen: (\\d{13})/.exec(node.textContent)?.[1]
        if (written) late.push(Date.now() - Number(written))
      }
  }).observe(document.querySelector('.events'), { childList: true })
}`

/**
 * What the tab bears: a stream of 5,000 events a second, made up, before a service that answers the
 * rest.
 */
export async function benchFlood(seconds: number): Promise<Record<string, number>> {
  await using kernel = await startKernel({
    RATE_LIMIT_OBSERVE_PER_MIN: '1000000',
    LOG_LEVEL: 'error',
  })
  await using flood = await startFlood(kernel.observeUrl)
  await using browser = await openBrowser()
  const page = await browser.context.newPage()
  await page.goto(`${flood.url}/#/feed`)
  await page.getByText('Live: the latest is at the top.').waitFor()
  await page.evaluate(COUNT_PAINTS)
  const clicks: number[] = []
  const end = performance.now() + seconds * 1_000
  while (performance.now() < end) {
    await sleep(CLICK_EVERY_MS)
    clicks.push((await page.evaluate(CLICK)) as number)
  }
  const paints = (await page.evaluate('globalThis.paints')) as number
  const sorted = clicks.toSorted((one, other) => one - other)
  return {
    'flood: events a second': flood.sent() / seconds,
    'flood: paints a second': paints / seconds,
    'flood: heap of the tab, MiB': await heap(page),
    'flood: a click, p50 ms': median(clicks),
    'flood: a click, at most ms': sorted.at(-1) ?? Number.NaN,
  }
}

/** In the browser: how often the list changes. */
const COUNT_PAINTS = `{
  globalThis.paints = 0
  let isCounted = false
  new MutationObserver(() => {
    if (isCounted) return
    isCounted = true
    requestAnimationFrame(() => {
      isCounted = false
      paints++
    })
  }).observe(document.querySelector('.events'), { childList: true })
}`

/** In the browser: from a click until its effect has been drawn. */
const CLICK = `new Promise((resolve) => {
  const begin = performance.now()
  document.querySelector('.filters summary').click()
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begin)))
})`

async function heap(page: Page): Promise<number> {
  const session = await page.context().newCDPSession(page)
  await session.send('HeapProfiler.collectGarbage')
  const { usedSize } = await session.send('Runtime.getHeapUsage')
  return usedSize / 1_048_576
}

async function startFlood(target: string) {
  let sent = 0
  let seq = 10 ** 12
  const server = createServer((incoming: IncomingMessage, answer: ServerResponse) => {
    if (!incoming.url?.startsWith('/observe/events/stream')) {
      const { pathname, search } = new URL(incoming.url ?? '/', target)
      const forwarded = request(
        `${target}${pathname}${search}`,
        { headers: incoming.headers },
        (response) => {
          answer.writeHead(response.statusCode ?? 502, response.headers)
          response.pipe(answer)
        },
      )
      forwarded.on('error', () => answer.destroy()).end()
      return
    }
    answer.writeHead(200, { 'Content-Type': 'text/event-stream' })
    const timer = setInterval(() => {
      const lines: string[] = []
      for (let count = 0; count < (FLOOD_RATE * FLOOD_EVERY_MS) / 1_000; count++) {
        seq++
        sent++
        lines.push(`id: ${seq}\ndata: ${JSON.stringify(floodEvent(seq))}\n\n`)
      }
      answer.write(lines.join(''))
    }, FLOOD_EVERY_MS)
    answer.on('close', () => clearInterval(timer))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    url: `http://127.0.0.1:${port}`,
    sent: () => sent,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

function floodEvent(seq: number): object {
  const agent = `tab_${String(seq % 1_000).padStart(20, '0')}`
  const data = {
    key: `flood/${seq % 100}`,
    value: 'x'.repeat(100),
    value_length: 100,
    written_by: agent,
  }
  return { seq, ts: new Date().toISOString(), type: 'state_written', agent, data }
}

/**
 * The page's picture of a large network, in headless Chromium without a graphics processor: until
 * it is there, and how smoothly it is moved.
 */
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Page } from 'playwright-core'
import { openBrowser } from '../lab/browser.ts'
import { startKernel } from '../lab/kernel.ts'
import { seededRandom } from '../lab/random.ts'
import { openSqlite, transaction } from '../src/platform/sqlite.ts'
import { median } from './load.ts'

/** Agents who mostly write to each other. */
const GROUP = 150
const WITHIN = 0.88
const BEGINNING = Date.UTC(2026, 0, 1)
const DEADLINE_MS = 120_000

/** By what was measured: milliseconds, or frames a second. @param pairs from whom to whom */
export async function benchNetwork(
  agents: number,
  pairs: number,
  seconds: number,
): Promise<Record<string, number>> {
  const dataDir = await mkdtemp(join(tmpdir(), 'tabulum-page-'))
  try {
    const settings = { RATE_LIMIT_OBSERVE_PER_MIN: '1000000' }
    await using empty = await startKernel(settings, { dataDir })
    await empty.stop()
    fill(join(dataDir, 'tabulum.db'), agents, pairs)
    await using kernel = await startKernel(settings, { dataDir })
    const answerMs = await answered(
      `${kernel.observeUrl}/observe/network?limit=50000`,
      Math.min(pairs, 50_000),
    )
    await using browser = await openBrowser()
    const page = await browser.context.newPage()
    await page.setViewportSize({ width: 1280, height: 900 })
    page.setDefaultTimeout(DEADLINE_MS)
    return {
      "the service's answer, ms": answerMs,
      ...(await watched(page, kernel.observeUrl, seconds)),
    }
  } finally {
    await rm(dataDir, { recursive: true, force: true })
  }
}

/** A log of agents who registered, and wrote to each other once or more. */
function fill(file: string, many: number, pairs: number): void {
  const random = seededRandom(1)
  const below = (bound: number) => Math.floor(random() * bound)
  const sqlite = openSqlite(file)
  const insert = sqlite.connection.prepare(
    'insert into events (ts, type, agent, data) values (?, ?, ?, ?)',
  )
  const agents = Array.from({ length: many }, () => `tab_${randomBytes(10).toString('hex')}`)
  const written = new Set<number>()
  let second = 0
  const add = (type: string, agent: string | null, data: object) =>
    insert.run(
      new Date(BEGINNING + second++ * 1_000).toISOString(),
      type,
      agent,
      JSON.stringify(data),
    )
  transaction(sqlite.connection, () => {
    add('operator_created', null, { operator_id: 'o', contact_hash: '', accepted_terms: true })
    for (const address of agents)
      add('agent_registered', address, { address, operator_id: 'o', has_webhook: false })
    while (written.size < pairs) {
      const one = Math.floor(random() ** 1.5 * many)
      const neighbour = Math.min(many - 1, one - (one % GROUP) + below(GROUP))
      const other = random() < WITHIN ? neighbour : below(many)
      if (one === other || written.has(one * many + other)) continue
      written.add(one * many + other)
      const [from = '', to = ''] = [agents[one], agents[other]]
      for (let times = 0; times <= 12 * random() ** 6; times++)
        add('message_sent', from, {
          message_id: randomUUID(),
          from,
          to,
          content: 'hello',
          content_length: 5,
        })
    }
  })
  sqlite.connection.close()
}

/** Waits until all pairs are counted, and says how long an answer takes then. */
async function answered(url: string, pairs: number): Promise<number> {
  const deadline = performance.now() + DEADLINE_MS
  while (performance.now() < deadline) {
    const answer = await fetch(url)
    // While it reads the log it may be too busy.
    const { edges = [] } = (await answer.json()) as { edges?: unknown[] }
    if (edges.length >= pairs) {
      const took: number[] = []
      for (let index = 0; index < 3; index++) {
        const begin = performance.now()
        await (await fetch(url)).arrayBuffer()
        took.push(performance.now() - begin)
      }
      return Math.round(median(took))
    }
    await sleep(500)
  }
  throw new Error(`the read models do not come to ${pairs} pairs`)
}

async function watched(page: Page, url: string, seconds: number): Promise<Record<string, number>> {
  const begin = performance.now()
  await page.goto(`${url}/#/network`)
  await page.locator('.stage[data-drawn]').waitFor()
  const firstMs = performance.now() - begin
  const moving = await framesWhilePanning(page, seconds)
  await page.locator('.stage[data-settled="true"]').waitFor()
  const settledMs = performance.now() - begin
  const still = await framesWhilePanning(page, seconds)
  return {
    'first picture, ms': Math.round(firstMs),
    'all in place, ms': Math.round(settledMs),
    'frames/s, panned while agents are placed': moving.perSecond,
    'frames/s, panned': still.perSecond,
    'longest frame of it, ms': still.longestMs,
  }
}

/** Drags the picture about, as a hand would. */
async function framesWhilePanning(
  page: Page,
  seconds: number,
): Promise<{ perSecond: number; longestMs: number }> {
  const box = await page.locator('.stage').boundingBox()
  if (!box) throw new Error('there is no picture')
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2]
  await page.evaluate(`
    frames = []
    onFrame = (now) => { frames.push(now); requestAnimationFrame(onFrame) }
    requestAnimationFrame(onFrame)
  `)
  await page.mouse.move(x, y)
  await page.mouse.down()
  const end = performance.now() + seconds * 1_000
  for (let step = 0; performance.now() < end; step++) {
    await page.mouse.move(x + 250 * Math.sin(step / 15), y + 90 * Math.cos(step / 15))
    await sleep(8)
  }
  await page.mouse.up()
  const frames = (await page.evaluate('onFrame = () => {}; frames')) as number[]
  const lengths = frames.slice(1).map((frame, index) => frame - (frames[index] ?? frame))
  const total = lengths.reduce((sum, length) => sum + length, 0)
  return {
    perSecond: Math.round((1_000 * lengths.length) / total),
    longestMs: Math.round(Math.max(...lengths)),
  }
}

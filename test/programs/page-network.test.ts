/** The picture of the network on the page: in a real browser, with a live kernel behind it. */
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it, onTestFinished } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { startKernel } from '../../lab/kernel.ts'
import { seededRandom } from '../../lab/random.ts'
import { overflowOf, startBrowser, violationsOn, WAIT } from '../support/browser.ts'

const kernel = await startKernel({
  RATE_LIMIT_OBSERVE_PER_MIN: '10000',
  RATE_LIMIT_MESSAGE_PER_MIN: '10000',
  LOG_LEVEL: 'error',
})
const browser = await startBrowser()
let page: Page
/** The first talks to all others, the second to the first only, and so on; the last to nobody. */
let agents: Agent[]

beforeAll(async () => {
  const client = new Client(kernel.baseUrl)
  agents = []
  for (let index = 0; index < 7; index++) agents.push(await client.registerAgent())
  const [hub, ...others] = agents
  for (const [index, other] of others.slice(0, 5).entries()) {
    for (let times = 0; times < 6 - index; times++)
      await hub?.send(other.address, `message ${times}`)
    await other.send(hub?.address ?? '', 'answer')
  }
  await others[1]?.send(others[2]?.address ?? '', 'past the hub')
  page = await browser.open()
  // The clock must not cover the picture, whose places are pointed at.
  await page.setViewportSize({ width: 1280, height: 1000 })
})

afterAll(async () => {
  await browser[Symbol.asyncDispose]()
  await kernel[Symbol.asyncDispose]()
})

const stage = () => page.locator('.stage')
const addressOf = (index: number) => agents[index]?.address ?? ''
const pointed = (text: string | RegExp) => page.locator('.pointed').getByText(text).waitFor()

async function show(parameters = ''): Promise<void> {
  await page.goto('about:blank')
  await page.goto(`${kernel.observeUrl}/#/network${parameters}`)
  await settled()
}

const settled = () => page.locator('.stage[data-drawn][data-settled="true"]').waitFor()

async function middle(): Promise<{ x: number; y: number }> {
  const box = await stage().boundingBox()
  if (!box) throw new Error('no picture')
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 }
}

/** Goes by keys to the agent who talks most, which is in the middle of the picture then. */
async function goToHub(): Promise<void> {
  await stage().focus()
  await page.keyboard.press('n')
  await pointed(`${addressOf(0)}: sent 20, received 5 messages; talks to 5 agents here`)
}

/** Moves the mouse there until the agent is what it points at: the picture may be on its way. */
async function pointsAt(place: { x: number; y: number }, address: string): Promise<void> {
  await expect
    .poll(async () => {
      await page.mouse.move(0, 0)
      await page.mouse.move(place.x, place.y)
      return page.locator('.pointed').textContent()
    }, WAIT)
    .toContain(address)
}

it('shows who is there and who talks to whom, and the table has the same', async () => {
  await show()
  await pointed('7 agents, 11 connections')
  expect(await page.locator('tbody tr').count()).toBe(11)
  expect(await stage().getAttribute('data-agents')).toBe('7')
})

it('is loaded only by who opens it', async () => {
  const fresh = await browser.open()
  onTestFinished(() => fresh.close())
  const asked: string[] = []
  fresh.on('request', (request) => asked.push(new URL(request.url()).pathname))
  const isPicture = (path: string) => /\/assets\/(picture|worker)-/.test(path)
  await fresh.goto(`${kernel.observeUrl}/#/overview`)
  await fresh.getByText('7 AI agents live here.').waitFor()
  expect(asked.filter(isPicture)).toEqual([])
  await fresh.getByRole('link', { name: 'Network' }).click()
  await fresh.locator('.stage[data-drawn]').waitFor()
  expect(asked.filter(isPicture).length).toBe(2)
})

it('is walked through by keys, and Enter shows a neighbourhood, which the link holds', async () => {
  await show()
  await goToHub()
  expect(
    await page
      .getByRole('status')
      .filter({ hasText: addressOf(0) })
      .count(),
  ).toBe(1)
  await page.keyboard.press('Enter')
  await page.waitForURL(new RegExp(`agent=${addressOf(0)}`))
  await page.locator('.stage[data-agents="6"][data-settled="true"]').waitFor()
  await expect.poll(() => page.locator('tbody tr').count(), WAIT).toBe(10)
  await pointsAt(await middle(), addressOf(0))
  await stage().focus()
  await page.keyboard.press('Escape')
  await page.locator('.stage[data-agents="7"]').waitFor()
  expect(page.url()).not.toContain('agent=')
})

it('opens a neighbourhood by a click, and from a link', async () => {
  await show()
  await goToHub()
  await pointsAt(await middle(), addressOf(0))
  const { x, y } = await middle()
  await page.mouse.click(x, y)
  await page.waitForURL(new RegExp(`agent=${addressOf(0)}`))
  await show(`?agent=${addressOf(2)}`)
  await pointed('3 agents, 3 connections')
  await page.getByText(/^Only .* and whom it talks to\./).waitFor()
  await page.getByRole('button', { name: 'Show everybody' }).click()
  await page.locator('.stage[data-agents="7"]').waitFor()
})

it('is moved and zoomed by keys, buttons, wheel and mouse, and shown whole again', async () => {
  await show()
  await goToHub()
  const place = await middle()
  await page.mouse.move(place.x, place.y)
  await page.mouse.down()
  await page.mouse.move(place.x + 100, place.y + 50, { steps: 5 })
  await page.mouse.up()
  expect(page.url()).not.toContain('agent=')
  await pointsAt({ x: place.x + 100, y: place.y + 50 }, addressOf(0))
  await stage().focus()
  await page.keyboard.press('ArrowRight')
  await pointsAt({ x: place.x + 10, y: place.y + 50 }, addressOf(0))
  // What is under the wheel stays there.
  await page.mouse.move(place.x + 10, place.y + 50)
  await page.mouse.wheel(0, -200)
  await page.mouse.wheel(0, -200)
  await pointsAt({ x: place.x + 10, y: place.y + 50 }, addressOf(0))
  for (const name of ['Nearer', 'Farther', 'Show all'])
    await page.getByRole('button', { name, exact: true }).click()
  await page.mouse.move(0, 0)
  await pointed('7 agents, 11 connections')
})

it('leaves out who wrote less than the reader wants', async () => {
  await show('?min_count=4')
  await pointed('7 agents, 3 connections')
  expect(await page.locator('tbody tr').count()).toBe(3)
})

it('finds an agent by a part of its address, and Enter opens it', async () => {
  await show()
  await page.getByLabel('with the agent').fill(addressOf(3).slice(4, 16))
  await pointed(addressOf(3))
  await pointsAt(await middle(), addressOf(3))
  await page.getByLabel('with the agent').press('Enter')
  await page.waitForURL(new RegExp(`agent=${addressOf(3)}`))
})

it('shows a message on its way, and nothing that moves to who does not want that', async () => {
  await show()
  const [hub, other] = agents
  await Promise.all([
    page.locator('.stage:not([data-pulses="0"])[data-pulses]').waitFor(),
    hub?.send(other?.address ?? '', 'now'),
  ])
  await page.emulateMedia({ reducedMotion: 'reduce' })
  onTestFinished(() => page.emulateMedia({ reducedMotion: 'no-preference' }))
  await show()
  expect(await page.locator('tbody tr').first().textContent()).toContain('7')
  await hub?.send(other?.address ?? '', 'and now')
  await page.locator('tbody tr').first().getByText('8', { exact: true }).waitFor()
  expect((await stage().getAttribute('data-pulses')) ?? '0').toBe('0')
})

it('leaves everybody in place when somebody comes', async () => {
  await show()
  await stage().focus()
  await page.keyboard.press('n')
  const place = await middle()
  await pointsAt(place, addressOf(0))
  await agents[6]?.send(addressOf(1), 'I am new here')
  await expect.poll(() => page.locator('tbody tr').count(), WAIT).toBe(12)
  await settled()
  await pointsAt(place, addressOf(0))
})

it('says so where it cannot be drawn, beside the table', async () => {
  const old = await browser.open()
  onTestFinished(() => old.close())
  await old.addInitScript('delete globalThis.OffscreenCanvas')
  await old.goto(`${kernel.observeUrl}/#/network`)
  await old.getByText('This browser cannot draw the picture of the network.').waitFor()
  await expect.poll(() => old.locator('tbody tr').count(), WAIT).toBe(12)
})

it('draws ten thousand agents and fifty thousand pairs', async () => {
  const large = await browser.open()
  onTestFinished(() => large.close())
  await large.route('**/observe/network?**', (route) =>
    route.fulfill({
      contentType: 'application/json',
      body: JSON.stringify(largeNetwork(10_000, 50_000)),
    }),
  )
  await large.goto(`${kernel.observeUrl}/#/network`)
  await large.locator('.stage[data-drawn][data-agents="10000"]').waitFor()
  await large.locator('.pointed').getByText('10,000 agents, 50,000 connections').waitFor()
  await large.locator('.stage').focus()
  await large.keyboard.press('n')
  await large
    .locator('.pointed')
    .getByText(/: sent/)
    .waitFor()
})

it.each(['light', 'dark'] as const)(
  'keeps nobody out, %s, and fits a phone',
  async (colorScheme) => {
    await page.emulateMedia({ colorScheme })
    for (const parameters of ['', `?agent=${addressOf(0)}`]) {
      await show(parameters)
      expect(await violationsOn(page), parameters).toEqual([])
      await page.setViewportSize({ width: 320, height: 640 })
      expect(await overflowOf(page), parameters).toBe(0)
      await page.setViewportSize({ width: 1280, height: 800 })
    }
  },
)

it('asked for nothing that is not allowed', () => {
  expect(browser.complaints).toEqual([])
})

/** A network in which most write within their own hundred. */
function largeNetwork(agents: number, pairs: number) {
  const random = seededRandom(1)
  const below = (bound: number) => Math.floor(random() * bound)
  const nodes = Array.from({ length: agents }, (_, index) => ({
    address: `tab_${String(index).padStart(20, '0')}`,
    messages_sent: below(100),
    messages_received: below(100),
  }))
  const found = new Map<string, { from: string; to: string; count: number }>()
  while (found.size < pairs) {
    const one = below(agents)
    const other =
      random() < 0.9 ? Math.min(agents - 1, one - (one % 100) + below(100)) : below(agents)
    const [from = '', to = ''] = [nodes[one]?.address, nodes[other]?.address]
    if (one !== other) found.set(`${from} ${to}`, { from, to, count: 1 + below(20) })
  }
  return { nodes, edges: [...found.values()].sort((a, b) => b.count - a.count) }
}

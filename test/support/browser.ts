/** A real browser for tests of the page on which one watches. */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import type { BrowserContext, Page } from 'playwright-core'
import { openBrowser } from '../../lab/browser.ts'

/** What a busy machine may take to show something. */
export const WAIT = { timeout: 60_000 }
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')

export interface TestBrowser extends AsyncDisposable {
  readonly context: BrowserContext
  /** What it complained of, in any tab. */
  readonly complaints: readonly string[]
  /** A tab, whose complaints are kept. */
  open(): Promise<Page>
}

export async function startBrowser(): Promise<TestBrowser> {
  const complaints: string[] = []
  const browser = await openBrowser()
  const { context } = browser
  context.setDefaultTimeout(WAIT.timeout)
  return {
    context,
    complaints,
    async open() {
      const tab = await context.newPage()
      tab.on('console', (message) => {
        if (message.type() === 'error' || message.type() === 'warning')
          complaints.push(message.text())
      })
      tab.on('pageerror', (error) => complaints.push(String(error)))
      return tab
    },
    [Symbol.asyncDispose]: () => browser[Symbol.asyncDispose](),
  }
}

/** What keeps people out of what the page shows, as axe finds it. */
export async function violationsOn(page: Page): Promise<string[]> {
  await page.evaluate(axe)
  return page.evaluate(async () => {
    const { axe: checker } = globalThis as unknown as {
      axe: { run(): Promise<{ violations: { id: string; nodes: { html: string }[] }[] }> }
    }
    const { violations } = await checker.run()
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`)
  })
}

/** How far what is shown reaches beyond the window, sideways. */
export const overflowOf = (page: Page) =>
  page.evaluate(
    'document.documentElement.scrollWidth - document.documentElement.clientWidth',
  ) as Promise<number>

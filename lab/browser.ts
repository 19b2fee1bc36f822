/** A real browser, headless, with a profile of its own. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type BrowserContext, chromium } from 'playwright-core'
import { findProgram } from './servers/programs.ts'

/** Chromium, which talks to nobody by itself. */
const ARGUMENTS = [
  '--no-sandbox',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  // There is no graphics card, and one that is emulated draws ten times as slowly as none.
  '--disable-gpu',
]

export interface Browser extends AsyncDisposable {
  readonly context: BrowserContext
}

/** Throws where there is no Chromium, and says how to install it. */
export async function openBrowser(): Promise<Browser> {
  const profile = await mkdtemp(join(tmpdir(), 'tabulum-browser-'))
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: await findProgram('chromium'),
    headless: true,
    args: ARGUMENTS,
  })
  return {
    context,
    [Symbol.asyncDispose]: async () => {
      await context.close()
      await rm(profile, { recursive: true, force: true })
    },
  }
}

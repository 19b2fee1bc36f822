import { afterEach, describe, expect, it } from 'vitest'
import { Credentials, VerifierBusy } from '../../src/access/credentials.ts'

const MAX_WAIT_MS = 1_000
/** After its wait comes its check, on a machine that may be busy. */
const ANSWER_MS = 4_000

let credentials: Credentials
afterEach(() => credentials.close())

function start(bcryptCost: number, maxWaitMs?: number): Credentials {
  credentials = new Credentials({ verifier: 'bcrypt', hmacKey: undefined, bcryptCost, maxWaitMs })
  return credentials
}

describe('many tokens at once', () => {
  it('costly ones: those that wait too long are refused, the others are checked, and nobody waits for long', async () => {
    const costly = start(11, MAX_WAIT_MS)
    const begin = performance.now()
    const answers = await Promise.all(
      Array.from({ length: 100 }, () =>
        costly.hash('secret').then(
          () => ({ ms: performance.now() - begin, refused: false }),
          (error: unknown) => {
            expect(error).toBeInstanceOf(VerifierBusy)
            return { ms: performance.now() - begin, refused: true }
          },
        ),
      ),
    )
    const refused = answers.filter((answer) => answer.refused)
    expect(refused.length).toBeGreaterThan(0)
    expect(refused.length).toBeLessThan(100)
    expect(Math.max(...answers.map(({ ms }) => ms))).toBeLessThan(ANSWER_MS)
  })

  it('cheap ones: all are checked', async () => {
    const cheap = start(4)
    expect(new Set(await Promise.all(Array.from({ length: 200 }, () => cheap.hash('secret')))).size).toBe(200)
  })
})

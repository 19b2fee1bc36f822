import { availableParallelism } from 'node:os'
import { afterEach, describe, expect, it } from 'vitest'
import { Credentials, VerifierBusy } from '../../src/access/credentials.ts'

const THREADS = availableParallelism()
const MAX_WAIT_MS = 1_000
/** More than are checked in that time on dozens of processors, and fewer than may wait. */
const MANY = 900
/** A machine that stands still for a while may refuse all, or take long over it; not so often in a row. */
const TRIES = 5

let credentials: Credentials
afterEach(() => credentials.close())

function start(bcryptCost: number, maxWaitMs?: number): Credentials {
  credentials = new Credentials({ verifier: 'bcrypt', hmacKey: undefined, bcryptCost, maxWaitMs })
  return credentials
}

describe('many tokens at once', () => {
  it('costly ones: those that wait too long are refused, the others are checked, and nobody waits for long', async () => {
    const costly = start(11, MAX_WAIT_MS)
    await warmUp(costly)
    const { longestMs: oneMs } = await hashAtOnce(costly, THREADS)
    // After its wait comes its check, on a machine that may be busy.
    const answerMs = MAX_WAIT_MS + Math.max(3_000, 20 * oneMs)
    let tries = 0
    let burst: Burst
    do {
      burst = await hashAtOnce(costly, MANY)
      expect(burst.refused).toBeGreaterThan(0)
      tries++
    } while (tries < TRIES && (burst.refused === MANY || burst.longestMs >= answerMs))
    expect(burst.refused).toBeLessThan(MANY)
    expect(burst.longestMs).toBeLessThan(answerMs)
  })

  it('cheap ones: all are checked', async () => {
    const cheap = start(4)
    expect(new Set(await Promise.all(Array.from({ length: 200 }, () => cheap.hash('secret')))).size).toBe(200)
  })
})

interface Burst {
  refused: number
  longestMs: number
}

async function hashAtOnce(hashing: Credentials, count: number): Promise<Burst> {
  const begin = performance.now()
  let refused = 0
  let longestMs = 0
  const one = async () => {
    try {
      await hashing.hash('secret')
    } catch (error) {
      expect(error).toBeInstanceOf(VerifierBusy)
      refused++
    }
    longestMs = performance.now() - begin
  }
  await Promise.all(Array.from({ length: count }, one))
  return { refused, longestMs }
}

/** Until all threads have loaded their code, and none is refused for it. */
async function warmUp(hashing: Credentials): Promise<void> {
  while ((await hashAtOnce(hashing, THREADS)).refused > 0);
}

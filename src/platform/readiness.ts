/** Whether a process is ready to serve, for load balancers: what `/readyz` says. */
import { setTimeout as sleep } from 'node:timers/promises'
import { inBackground } from './background.ts'
import { SilenceTimeout } from './silence-timeout.ts'

/** Says why a part is not ready; undefined if it is. */
export type ReadinessCheck = () => Promise<string | undefined>

/** What `/readyz` asks, by the names that it tells. */
export interface ReadinessChecks {
  /**
   * Whether this process reaches each of its servers. One that reaches none of them is of no use to
   * anybody.
   */
  readonly servers: Readonly<Record<string, ReadinessCheck>>
  /** Whether the work goes on that processes do for each other. */
  readonly work: Readonly<Record<string, ReadinessCheck>>
  /**
   * Whether there is room for more, by the names of the others. Where there is none that is told; a
   * process that starts then is as good as any.
   */
  readonly room?: Readonly<Record<string, ReadinessCheck>>
}

const CHECK_TIMEOUT_MS = 1_000
/**
 * Once a process has been ready, the parts are asked so long after each other's answer, whoever
 * asks for `/readyz` and however often: load balancers do so many times a second, and are told at
 * once. With the time for a check and two questions of HAProxy a node that is cut off is out of
 * service within 3 s.
 */
const CHECK_INTERVAL_MS = 500

/** `ready` and `degraded` (a part is out) serve, the others do not. */
export type ReadinessStatus = 'starting' | 'ready' | 'degraded' | 'cut_off' | 'draining'

/**
 * Modes: *starting* (not all servers and work have been well at once yet: who asks has them asked)
 * → *ready*, *degraded* or *cut off*, as they are now, which is looked at all the time →
 * *draining*.
 *
 * A server that goes out later is out for all nodes, and taking every one of them out of service
 * would end what works without it. A node that reaches none is cut off, and the others are not; or
 * nothing works anyway.
 */
export class Readiness {
  readonly #checks: ReadinessChecks
  readonly #closed = new AbortController()
  #isDraining = false
  #hasBeenReady = false
  #latest = { parts: {}, isWhole: false, isCutOff: false }

  constructor(checks: ReadinessChecks) {
    this.#checks = checks
  }

  /** What it is, and what each part is: `ok`, or a sentence. Never throws. */
  async now(): Promise<{ status: ReadinessStatus; parts: Readonly<Record<string, string>> }> {
    if (!this.#hasBeenReady) await this.#examine()
    return { status: this.#status(), parts: this.#latest.parts }
  }

  /** From now on it says no: the load balancer should send nothing more. */
  drain(): void {
    this.#isDraining = true
  }

  close(): void {
    this.#closed.abort()
  }

  #status(): ReadinessStatus {
    if (this.#isDraining) return 'draining'
    if (this.#latest.isWhole) return 'ready'
    if (!this.#hasBeenReady) return 'starting'
    return this.#latest.isCutOff ? 'cut_off' : 'degraded'
  }

  async #examine(): Promise<void> {
    const [servers, work, room] = await Promise.all([
      outcomes(this.#checks.servers),
      outcomes(this.#checks.work),
      outcomes(this.#checks.room ?? {}),
    ])
    const problems = Object.values(servers).filter((problem) => problem !== OK)
    const isCutOff = problems.length > 0 && problems.length === Object.keys(servers).length
    const serves = isFine(servers) && isFine(work)
    const parts = { ...servers, ...work }
    for (const [part, problem] of Object.entries(room))
      if ((parts[part] ?? OK) === OK) parts[part] = problem
    this.#latest = { parts, isWhole: serves && isFine(room), isCutOff }
    if (serves && !this.#hasBeenReady) {
      this.#hasBeenReady = true
      inBackground('check_readiness', this.#keepExamining())
    }
  }

  async #keepExamining(): Promise<void> {
    while (!this.#closed.signal.aborted) {
      await sleep(CHECK_INTERVAL_MS, undefined, { ref: false })
      await this.#examine()
    }
  }
}

const OK = 'ok'

function isFine(parts: Readonly<Record<string, string>>): boolean {
  return Object.values(parts).every((problem) => problem === OK)
}

/** Asks all at once. Never throws. */
async function outcomes(
  checks: Readonly<Record<string, ReadinessCheck>>,
): Promise<Record<string, string>> {
  const entries = Object.entries(checks).map(
    async ([part, check]) => [part, (await outcome(check)) ?? OK] as const,
  )
  return Object.fromEntries(await Promise.all(entries))
}

async function outcome(check: ReadinessCheck): Promise<string | undefined> {
  try {
    return await new SilenceTimeout().wait(
      check(),
      CHECK_TIMEOUT_MS,
      () => new Error(`no answer within ${CHECK_TIMEOUT_MS} ms`),
    )
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** The conformance suite of the `Admission` port: sessions, and token buckets. */
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  type Admission,
  type BucketState,
  CATEGORIES,
  type Category,
  type Session,
} from '../../src/access/admission.ts'
import type { MemoryAdmissionOptions } from '../../src/access/memory-admission.ts'
import { newAddress, newToken, type PresentedToken } from '../../src/access/tokens.ts'
import { inParallel, inSequence } from './support.ts'

export interface AdmissionHarness extends AsyncDisposable {
  /** One for each API node; where there is one node only, one. */
  readonly nodes: readonly [Admission, ...Admission[]]
  /**
   * The clock that sessions and buckets go by, unix time in ms; to within CLOCK_TOLERANCE_MS where
   * it is a server's.
   */
  now(): number
  /** Resolves when so much time has passed on that clock. */
  pass(ms: number): Promise<void>
}

/** What the harness is to be created with: short, for adapters whose time cannot be moved. */
export const ADMISSION_OPTIONS: Omit<MemoryAdmissionOptions, 'now'> = {
  sessionTtlMs: 2_000,
  allowances: {
    message: { limit: 20, periodMs: 4_000 },
    state_read: { limit: 50, periodMs: 60_000 },
    state_write: { limit: 7, periodMs: 60_000 },
    registry_read: { limit: 1, periodMs: 60_000 },
    operator_registration: { limit: 5, periodMs: 3_600_000 },
  },
}

const CLOCK_TOLERANCE_MS = 250
const { sessionTtlMs, allowances } = ADMISSION_OPTIONS

export function describeAdmission(
  name: string,
  create: (options: Omit<MemoryAdmissionOptions, 'now'>) => Promise<AdmissionHarness>,
): void {
  describe(`admission: ${name}`, () => {
    let harness: AdmissionHarness
    let admission: Admission
    /** The admission of another node, where there is one. */
    let other: Admission
    beforeAll(async () => {
      harness = await create(ADMISSION_OPTIONS)
      admission = harness.nodes[0]
      other = harness.nodes[1] ?? admission
    })
    afterAll(() => harness[Symbol.asyncDispose]())

    /** The sessions that were opened here, and a time before they were. */
    const opened = new Map<PresentedToken, { session: Session; openedAt: number }>()

    function openFor(token: PresentedToken, session: Session, category?: Category) {
      opened.set(token, { session, openedAt: harness.now() })
      return admission.open(token, session, category)
    }

    /** An agent with a session. */
    async function open(): Promise<{ token: PresentedToken; session: Session }> {
      const token = newToken('agent')
      const session = { identity: newAddress() }
      expect(await openFor(token, session)).toEqual({ session })
      return { token, session }
    }

    /** Whether the session of a token must be there still. */
    function mustLive(token: PresentedToken): boolean {
      const { openedAt = Number.NEGATIVE_INFINITY } = opened.get(token) ?? {}
      return harness.now() - openedAt + CLOCK_TOLERANCE_MS < sessionTtlMs
    }

    /**
     * Admits by a session that was opened, and opens it again where a slow machine may have let its
     * time run out.
     */
    async function admit(token: PresentedToken, category?: Category, node = admission) {
      for (;;) {
        const admitted = await node.admit(token, category)
        const { session } = opened.get(token) ?? {}
        if (admitted || !session || mustLive(token)) return admitted
        await openFor(token, session)
      }
    }

    async function take(
      token: PresentedToken,
      category: Category,
      node = admission,
    ): Promise<BucketState> {
      const admitted = await admit(token, category, node)
      if (!admitted?.bucket) throw new Error('not admitted, or no bucket')
      return admitted.bucket
    }

    describe('sessions', () => {
      it('are not there before they are opened', async () => {
        expect(await admission.admit(newToken('agent'))).toBeUndefined()
        expect(await admission.admit(newToken('operator'), 'message')).toBeUndefined()
      })

      it('are there once opened, on every node', async () => {
        const { token, session } = await open()
        expect(await admit(token)).toEqual({ session })
        expect(await admit(token, undefined, other)).toEqual({ session })
      })

      it('of an operator too', async () => {
        const token = newToken('operator')
        const session = { identity: randomUUID() }
        await openFor(token, session)
        expect(await admit(token, undefined, other)).toEqual({ session })
      })

      it('take from a bucket in the same call, at opening too', async () => {
        const token = newToken('agent')
        const session = { identity: newAddress() }
        const first = await openFor(token, session, 'state_write')
        expect(first).toMatchObject({ session, bucket: { allowed: true, limit: 7, remaining: 6 } })
        expect(await admit(token, 'state_write')).toMatchObject({
          session,
          bucket: { remaining: 5 },
        })
      })

      it('end with their time, use or not', async () => {
        const { token, session } = await open()
        await harness.pass(sessionTtlMs / 2)
        const admitted = await admission.admit(token)
        // Unless a slow machine has taken so long that its time may be over.
        if (mustLive(token)) expect(admitted).toEqual({ session })
        await harness.pass(sessionTtlMs / 2 + CLOCK_TOLERANCE_MS)
        expect(await admission.admit(token)).toBeUndefined()
        expect(await other.admit(token)).toBeUndefined()
      })

      it('are not another token’s, though the look-up be the same', async () => {
        const { token } = await open()
        const digest = createHash('sha256').update('another').digest('hex')
        expect(await admission.admit({ ...token, digest })).toBeUndefined()
        expect(await admit(token)).toBeDefined()
      })

      it('are not another level’s', async () => {
        const { token } = await open()
        expect(await admission.admit({ ...token, level: 'operator' })).toBeUndefined()
      })

      it('end at once when revoked, on every node, and others’ do not', async () => {
        const { token } = await open()
        const bystander = await open()
        expect(await admit(token, undefined, other)).toBeDefined()
        await admission.revoke(token.lookup)
        expect(await admission.admit(token)).toBeUndefined()
        expect(await other.admit(token)).toBeUndefined()
        expect(await admission.admit(token, 'message')).toBeUndefined()
        expect(await admit(bystander.token, undefined, other)).toEqual({
          session: bystander.session,
        })
      })

      it('do not open after a revocation, by a verification that was under way', async () => {
        const token = newToken('agent')
        await admission.revoke(token.lookup)
        expect(await admission.open(token, { identity: newAddress() })).toBeUndefined()
        expect(await admission.admit(token)).toBeUndefined()
        expect(await other.open(token, { identity: newAddress() }, 'message')).toBeUndefined()
        expect(await other.admit(token)).toBeUndefined()
      })

      it('revoking a token that has none is no error', async () => {
        await admission.revoke(randomBytes(8))
      })
    })

    describe('buckets', () => {
      it.each(CATEGORIES)(
        '%s: allow a burst of the whole limit, counting down, and then no more',
        async (category) => {
          const { token } = await open()
          const { limit, periodMs } = allowances[category]
          const start = harness.now()
          const states = await inSequence(limit, () => take(token, category))
          expect(states.map(({ allowed }) => allowed)).toEqual(states.map(() => true))
          expect(states.every((state) => state.limit === limit && state.retryAfterMs === 0)).toBe(
            true,
          )
          expect(states[0]?.remaining).toBe(limit - 1)
          const interval = periodMs / limit
          const refused = await take(token, category)
          // Refill since the start may have let one through, where time cannot be held.
          if (harness.now() - start + CLOCK_TOLERANCE_MS < interval) {
            expect(states.map(({ remaining }) => remaining)).toEqual(
              states.map((_, index) => limit - 1 - index),
            )
            expect(refused).toMatchObject({ allowed: false, limit, remaining: 0 })
            expect(refused.retryAfterMs).toBeGreaterThan(0)
            expect(refused.retryAfterMs).toBeLessThanOrEqual(interval + CLOCK_TOLERANCE_MS)
          }
        },
      )

      it('say when they are full again: an interval for each request taken', async () => {
        const { token } = await open()
        const interval = allowances.state_write.periodMs / allowances.state_write.limit
        let previous = 0
        for (let taken = 1; taken <= 3; taken++) {
          const before = harness.now()
          const { fullAtMs } = await take(token, 'state_write')
          const after = harness.now()
          expect(fullAtMs).toBeGreaterThan(
            Math.max(previous, before) + interval - CLOCK_TOLERANCE_MS,
          )
          expect(fullAtMs).toBeLessThan(Math.max(previous, after) + interval + CLOCK_TOLERANCE_MS)
          previous = fullAtMs
        }
      })

      it('are refused nothing by what was refused: it does not count', async () => {
        const { token } = await open()
        const { fullAtMs } = await take(token, 'registry_read')
        for (let index = 0; index < 5; index++) {
          expect(await take(token, 'registry_read')).toMatchObject({
            allowed: false,
            remaining: 0,
            fullAtMs,
          })
        }
      })

      it('allow the next request after retryAfterMs, and one only', async () => {
        const { token } = await open()
        let state = await take(token, 'message')
        while (state.allowed) state = await take(token, 'message')
        await harness.pass(state.retryAfterMs)
        expect(await take(token, 'message')).toMatchObject({ allowed: true })
      })

      it('refill at a constant rate: limit and rate times time, no more and no less', async () => {
        const { token, session } = await open()
        const { limit, periodMs } = allowances.message
        const interval = periodMs / limit
        const ask = async () => (await admission.open(token, session, 'message'))?.bucket
        const before = harness.now()
        // From here on the bucket is not full, and so loses nothing.
        expect(await ask()).toMatchObject({ allowed: true })
        const begin = harness.now()
        let allowed = 1
        let lastRefusal: BucketState | undefined
        while (harness.now() - begin < 1.2 * periodMs) {
          const state = await ask()
          if (state?.allowed) allowed++
          else {
            lastRefusal = state
            await harness.pass(Math.max(1, state?.retryAfterMs ?? 0))
          }
        }
        expect(lastRefusal).toBeDefined()
        const elapsed = harness.now() - begin
        // A machine that comes late loses nothing, the bucket keeps it.
        while ((await ask())?.allowed) allowed++
        const elapsedInAll = harness.now() - before
        expect(allowed).toBeLessThanOrEqual(
          limit + Math.ceil((elapsedInAll + CLOCK_TOLERANCE_MS) / interval),
        )
        expect(allowed).toBeGreaterThanOrEqual(
          limit + Math.floor((elapsed - CLOCK_TOLERANCE_MS) / interval),
        )
      })

      it('hold no more than the limit, however long nobody asks', async () => {
        const { token, session } = await open()
        const { limit, periodMs } = allowances.message
        await take(token, 'message')
        await harness.pass(1.5 * periodMs)
        await admission.open(token, session)
        expect((await take(token, 'message')).remaining).toBe(limit - 1)
      })

      it('of categories are independent', async () => {
        const { token } = await open()
        const refused = (await inSequence(8, () => take(token, 'state_write'))).at(-1)
        expect(refused?.allowed).toBe(false)
        expect(await take(token, 'state_read')).toMatchObject({
          allowed: true,
          limit: 50,
          remaining: 49,
        })
        expect(await take(token, 'registry_read')).toMatchObject({
          allowed: true,
          limit: 1,
          remaining: 0,
        })
        expect(await take(token, 'message')).toMatchObject({
          allowed: true,
          limit: 20,
          remaining: 19,
        })
      })

      it('of agents are independent', async () => {
        const [one, two] = [await open(), await open()]
        await inSequence(8, () => take(one.token, 'state_write'))
        expect(await take(two.token, 'state_write')).toMatchObject({ allowed: true, remaining: 6 })
      })

      it('are not drawn on without a category', async () => {
        const { token } = await open()
        await inSequence(10, () => admission.admit(token))
        expect((await take(token, 'state_write')).remaining).toBe(6)
      })

      it('outlive the session', async () => {
        const { token, session } = await open()
        await inSequence(7, () => take(token, 'state_write'))
        await harness.pass(sessionTtlMs + CLOCK_TOLERANCE_MS)
        expect(await admission.admit(token, 'state_write')).toBeUndefined()
        const reopened = await admission.open(token, session, 'state_write')
        expect(reopened?.bucket?.allowed).toBe(false)
      })

      it('let exactly the limit through of many requests at once, on all nodes together', async () => {
        const { token } = await open()
        const { limit } = allowances.state_read
        const start = harness.now()
        const states = await inParallel(4 * limit, (index) =>
          take(token, 'state_read', index % 2 === 0 ? admission : other),
        )
        // Whatever was refilled meanwhile may be let through as well.
        const refilled = Math.ceil(
          (harness.now() - start) / (allowances.state_read.periodMs / limit),
        )
        const allowed = states.filter((state) => state.allowed).length
        expect(allowed).toBeGreaterThanOrEqual(limit)
        expect(allowed).toBeLessThanOrEqual(limit + refilled)
      })
    })

    describe('admitClient', () => {
      const newClient = () =>
        `2001:db8::${randomBytes(2).toString('hex')}:${randomBytes(2).toString('hex')}`

      it('lets a burst of the limit through for an address, counting down, and then no more', async () => {
        const client = newClient()
        const states = await inSequence(6, (index) =>
          (index % 2 === 0 ? admission : other).admitClient(client),
        )
        expect(states.map(({ allowed }) => allowed)).toEqual([true, true, true, true, true, false])
        expect(states.map(({ remaining }) => remaining)).toEqual([4, 3, 2, 1, 0, 0])
        const interval = allowances.operator_registration.periodMs / 5
        const { retryAfterMs = 0, fullAtMs = 0 } = states.at(-1) ?? {}
        expect(Math.abs(retryAfterMs - interval)).toBeLessThan(5_000)
        expect(Math.abs(fullAtMs - harness.now() - 5 * interval)).toBeLessThan(5_000)
      })

      it('keeps addresses apart', async () => {
        const [one, two] = [newClient(), '192.0.2.77']
        await inSequence(6, () => admission.admitClient(one))
        expect(await admission.admitClient(two)).toMatchObject({ allowed: true, remaining: 4 })
      })

      it('lets exactly the limit through of many requests at once', async () => {
        const client = newClient()
        const states = await inParallel(40, (index) =>
          (index % 2 === 0 ? admission : other).admitClient(client),
        )
        expect(states.filter(({ allowed }) => allowed)).toHaveLength(5)
      })
    })
  })
}

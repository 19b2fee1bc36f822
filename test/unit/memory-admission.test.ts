import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, it } from 'vitest'
import { MemoryAdmission } from '../../src/access/memory-admission.ts'
import { newAddress, newToken } from '../../src/access/tokens.ts'

const allowance = { limit: 2, periodMs: 60_000 }
const admission = new MemoryAdmission({
  sessionTtlMs: 30_000,
  allowances: {
    message: allowance,
    state_read: allowance,
    state_write: allowance,
    registry_read: allowance,
    operator_registration: allowance,
  },
  // Stands still, so that nothing runs out and no bucket fills up however long it takes to make so
  // many.
  now: () => 0,
  elapsed: () => 0,
})
const MAX_SESSIONS = 100_000

describe('the memory that sessions and buckets take', () => {
  it('is bounded: of many sessions those used last are kept, and one that was dropped is just verified again', async () => {
    const first = newToken('agent')
    const used = newToken('agent')
    for (const token of [first, used]) await admission.open(token, { identity: newAddress() })
    for (let index = 0; index < MAX_SESSIONS; index++) {
      const token = { ...first, digest: index.toString(16).padStart(16, '0') }
      await admission.open(token, { identity: 'tab_x' })
      if (index % 50_000 === 0) expect(await admission.admit(used)).toBeDefined()
    }
    expect(await admission.admit(first)).toBeUndefined()
    expect(await admission.admit(used)).toBeDefined()
    expect(await admission.open(first, { identity: newAddress() })).toBeDefined()
  })

  it('is bounded for addresses of clients, of which anybody has many', async () => {
    const before = memoryInUse()
    const clients = 700_000
    for (let index = 0; index < clients; index++)
      await admission.admitClient(`2001:db8::${index.toString(16)}`)
    const megabytes = (memoryInUse() - before) / 1_048_576
    expect(megabytes).toBeLessThan(200)
    // The first one has made room, and so is new again.
    expect((await admission.admitClient('2001:db8::0')).remaining).toBe(1)
    // The last one is still known.
    const last = `2001:db8::${(clients - 1).toString(16)}`
    expect((await admission.admitClient(last)).remaining).toBe(0)
    expect((await admission.admitClient(last)).allowed).toBe(false)
  })
})

/** Without what is garbage, of which there is as much as the collector has not come round to. */
function memoryInUse(): number {
  setFlagsFromString('--expose-gc')
  runInNewContext('gc')()
  return process.memoryUsage().heapUsed
}

/**
 * The registry of a cluster: the suite of its port on Postgres, and how it waits for the log and
 * the projection.
 */
import { describe, expect, it, vi } from 'vitest'
import type { NewEvent } from '../../src/events/event.ts'
import { type Appended, type AppendOptions, LogUnavailable } from '../../src/events/event-log.ts'
import { Progress } from '../../src/events/progress.ts'
import { PostgresRegistryStore } from '../../src/registry/postgres-registry-store.ts'
import type { RegistryTables } from '../../src/registry/postgres-registry-tables.ts'
import { describeRegistryStore, newAgent, newOperator } from '../conformance/registry-store.ts'
import { openRegistry } from './support.ts'

describeRegistryStore('Postgres', async () => {
  const { tables, ...harness } = await openRegistry()
  return {
    ...harness,
    revoke: async (level, identity) => (await tables.revoke(level, identity)) !== undefined,
  }
})

describe('who registers in a cluster', () => {
  /** A store that says what it does, on parts that do what the test says. */
  function storeOn(append: (options?: AppendOptions) => Promise<Appended>) {
    const did: string[] = []
    const progress = new Progress()
    const tables = {
      stageOperator: async () => void did.push('staged'),
      stageAgent: async () => void did.push('staged'),
    } as unknown as RegistryTables
    const log = {
      append: async (_: NewEvent, options?: AppendOptions) => {
        did.push('appended')
        return append(options)
      },
    }
    return { store: new PostgresRegistryStore(tables, log, progress), progress, did }
  }
  const [agent, operator] = [newAgent(), newOperator()]
  const registrations: Record<string, (store: PostgresRegistryStore) => Promise<void>> = {
    agent: (store) => store.registerAgent(agent.secrets, agent.event),
    operator: (store) => store.registerOperator(operator.token, operator.event),
  }

  for (const [name, register] of Object.entries(registrations)) {
    it(`is staged, then appended while that holds, then waited for: an ${name}`, async () => {
      const before = performance.now()
      let notAfter: number | undefined
      const { store, progress, did } = storeOn(async (options) => {
        notAfter = options?.notAfter
        return { seq: 7, duplicate: false }
      })
      const registering = register(store).then(() => did.push('answered'))
      await vi.waitFor(() => expect(did).toEqual(['staged', 'appended']))
      expect(notAfter).toBeGreaterThanOrEqual(before + 5_000)
      expect(notAfter).toBeLessThanOrEqual(performance.now() + 5_000)
      progress.advance(6)
      await new Promise((resolve) => setImmediate(resolve))
      expect(did).toEqual(['staged', 'appended'])
      progress.advance(7)
      await registering
      expect(did).toEqual(['staged', 'appended', 'answered'])
    })

    it(`is not answered when the log is out: an ${name}`, async () => {
      const { store } = storeOn(async () => {
        throw new LogUnavailable('out')
      })
      await expect(register(store)).rejects.toBeInstanceOf(LogUnavailable)
    })
  }
})

/** The ids of agents by their addresses, which never change. */
import { sql } from 'kysely'
import { LRUCache } from 'lru-cache'
import type { ObservationDatabase } from './observation-database.ts'

/** Addresses whose ids a process remembers, some 150 bytes each. */
const MAX_KNOWN = 100_000

export class AgentIds {
  readonly #database: ObservationDatabase
  readonly #query: 'query' | 'queryForChange'
  readonly #known = new LRUCache<string, number>({ max: MAX_KNOWN })

  /** @param query which of the two to ask by */
  constructor(database: ObservationDatabase, query: 'query' | 'queryForChange') {
    this.#database = database
    this.#query = query
  }

  add(address: string, id: number): void {
    this.#known.set(address, id)
  }

  /** By address, of those that there are. Throws `Unavailable`. */
  async of(addresses: ReadonlySet<string>): Promise<Map<string, number>> {
    const ids = new Map<string, number>()
    const missing: { address: string }[] = []
    for (const address of addresses) {
      const id = this.#known.get(address)
      if (id === undefined) missing.push({ address })
      else ids.set(address, id)
    }
    if (missing.length === 0) return ids
    const found = await this.#database[this.#query](
      'observation_agents',
      sql<{ id: number; address: string }>`
        select id, a.address from ${this.#database.table('agents')} as a
        join ${this.#database.rows(missing, { address: 'text' })} on r.address = a.address`,
    )
    for (const { id, address } of found) {
      ids.set(address, id)
      this.#known.set(address, id)
    }
    return ids
  }

  /** Undefined of one that there is not. Throws `Unavailable`. */
  async one(address: string): Promise<number | undefined> {
    return (await this.of(new Set([address]))).get(address)
  }
}

/**
 * The registry in the embedded database. Its reads are written here, and not once for both
 * databases with Kysely: that took four times the CPU with each statement kept prepared, and pages,
 * times, bytes, deadlines and metrics would differ all the same.
 */
import type { Level } from '../access/tokens.ts'
import type { EventOf } from '../events/event.ts'
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import type {
  AgentSecrets,
  Candidate,
  NewChallenge,
  RegisteredAgent,
  RegistryPage,
  RegistryStore,
  StoredToken,
  TakenChallenge,
} from './registry-store.ts'
import type { RegistryWrites } from './sqlite-registry-writes.ts'

/** Longer than sessions last. */
const RECENTLY_MS = 60_000

export class SqliteRegistryStore implements RegistryStore {
  readonly #sql: Sqlite['sql']
  readonly #writer: Pick<SqliteWriter<RegistryWrites>, 'run'>

  /** @param reader another connection than the writer's */
  constructor(reader: Sqlite, writer: Pick<SqliteWriter<RegistryWrites>, 'run'>) {
    this.#sql = reader.sql
    this.#writer = writer
  }

  registerOperator(token: StoredToken, event: EventOf<'operator_created'>): Promise<void> {
    return this.#writer.run('registerOperator', { token, event })
  }

  registerAgent(secrets: AgentSecrets, event: EventOf<'agent_registered'>): Promise<void> {
    return this.#writer.run('registerAgent', { secrets, event })
  }

  async findByToken(level: Level, lookup: Buffer): Promise<Candidate[]> {
    const sql = this.#sql
    const rows =
      level === 'operator'
        ? sql.all`
            select operator_id as identity, operator_id as operatorId, token_hash as tokenHash from operators
            where token_lookup = ${lookup} and revoked_at is null`
        : sql.all`
            select address as identity, operator_id as operatorId, token_hash as tokenHash from agents
            where token_lookup = ${lookup} and revoked_at is null`
    return rows as unknown as Candidate[]
  }

  async findAgent(address: string): Promise<RegisteredAgent | undefined> {
    const row = this.#sql.get`
      select registered_at, webhook_secret is not null as has_webhook from agents where address = ${address}`
    return (
      row && {
        address,
        registeredAt: row.registered_at as string,
        hasWebhook: row.has_webhook === 1,
      }
    )
  }

  async page(since: number, limit: number): Promise<RegistryPage> {
    const rows = this.#sql.all`
      select seq, address, registered_at as registeredAt from agents where seq > ${since} order by seq limit ${limit}`
    return { agents: rows as unknown as RegistryPage['agents'], total: await this.total() }
  }

  async total(): Promise<number> {
    return this.#sql.get`select agents from registry_totals`?.agents as number
  }

  async saveChallenge(challenge: NewChallenge): Promise<Date> {
    return new Date(await this.#writer.run('saveChallenge', challenge))
  }

  async takeChallenge(
    challengeId: string,
    operatorId: string,
  ): Promise<TakenChallenge | undefined> {
    const taken = await this.#writer.run('takeChallenge', { challengeId, operatorId })
    return (
      taken && {
        answerHash: taken.answerHash && Buffer.from(taken.answerHash),
        isExpired: taken.isExpired,
      }
    )
  }

  /**
   * The look-ups of tokens that were revoked so short a time ago that there may be sessions of
   * them.
   */
  async recentlyRevoked(): Promise<Buffer[]> {
    const since = new Date(Date.now() - RECENTLY_MS).toISOString()
    const rows = this.#sql.all`
      select token_lookup from agents where revoked_at > ${since}
      union all select token_lookup from operators where revoked_at > ${since}`
    return rows.map((row) => Buffer.from(row.token_lookup as Uint8Array))
  }
}

/**
 * The registry of a cluster: who registers is staged before the append, and can be found when the
 * projection has applied it.
 */
import type { Level } from '../access/tokens.ts'
import type { EventOf, NewEvent } from '../events/event.ts'
import { type EventLog, PREPARATION_USABLE_MS } from '../events/event-log.ts'
import type { Progress } from '../events/progress.ts'
import type { RegistryTables } from './postgres-registry-tables.ts'
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

export class PostgresRegistryStore implements RegistryStore {
  readonly #tables: RegistryTables
  readonly #log: Pick<EventLog, 'append'>
  readonly #progress: Pick<Progress, 'reached'>

  /** @param progress of the projection in the database */
  constructor(
    tables: RegistryTables,
    log: Pick<EventLog, 'append'>,
    progress: Pick<Progress, 'reached'>,
  ) {
    this.#tables = tables
    this.#log = log
    this.#progress = progress
  }

  registerOperator(token: StoredToken, event: EventOf<'operator_created'>): Promise<void> {
    return this.#register(event, () => this.#tables.stageOperator(event.data.operator_id, token))
  }

  registerAgent(secrets: AgentSecrets, event: EventOf<'agent_registered'>): Promise<void> {
    return this.#register(event, () => this.#tables.stageAgent(event.data, secrets))
  }

  async #register(event: NewEvent, stage: () => Promise<void>): Promise<void> {
    const notAfter = performance.now() + PREPARATION_USABLE_MS
    await stage()
    const { seq } = await this.#log.append(event, { notAfter })
    await this.#progress.reached(seq)
  }

  findByToken(level: Level, lookup: Buffer): Promise<Candidate[]> {
    return this.#tables.findByToken(level, lookup)
  }

  findAgent(address: string): Promise<RegisteredAgent | undefined> {
    return this.#tables.findAgent(address)
  }

  page(since: number, limit: number): Promise<RegistryPage> {
    return this.#tables.page(since, limit)
  }

  total(): Promise<number> {
    return this.#tables.total()
  }

  saveChallenge(challenge: NewChallenge): Promise<Date> {
    return this.#tables.saveChallenge(challenge)
  }

  takeChallenge(challengeId: string, operatorId: string): Promise<TakenChallenge | undefined> {
    return this.#tables.takeChallenge(challengeId, operatorId)
  }
}

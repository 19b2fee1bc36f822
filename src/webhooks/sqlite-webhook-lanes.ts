/**
 * The webhook lanes in the embedded database, which the one worker of the process has for itself.
 */
import type { Sqlite } from '../platform/sqlite.ts'
import type { SqliteWriter } from '../platform/sqlite-writer.ts'
import { CIRCUIT_POLICY } from './circuit-breaker.ts'
import type { WebhookLaneWrites } from './sqlite-webhook-writes.ts'
import {
  type Backlog,
  CLOCK_CHECK_MS,
  type ClaimedLane,
  type LaneTurn,
  MAX_DELAY_MS,
  type Quota,
  type WebhookLanes,
  type WebhookLanesOptions,
} from './webhook-lanes.ts'

export class SqliteWebhookLanes implements WebhookLanes {
  readonly #sql: Sqlite['sql']
  readonly #writer: Pick<SqliteWriter<WebhookLaneWrites>, 'run'>
  readonly #circuitMs: number
  /** When times were looked at last, by `performance.now()`. */
  #clockCheckedAt = Number.NEGATIVE_INFINITY

  /** @param reader another connection than the writer's */
  constructor(
    reader: Sqlite,
    writer: Pick<SqliteWriter<WebhookLaneWrites>, 'run'>,
    { circuitMs = CIRCUIT_POLICY.duration }: WebhookLanesOptions = {},
  ) {
    this.#sql = reader.sql
    this.#writer = writer
    this.#circuitMs = circuitMs
  }

  /** Reads first, so that nothing is written while there is nothing to do. */
  async claim(
    holder: string,
    leaseMs: number,
    quota: Quota,
    turnMessages: number,
  ): Promise<ClaimedLane[]> {
    if (performance.now() - this.#clockCheckedAt > CLOCK_CHECK_MS) {
      this.#clockCheckedAt = performance.now()
      if (this.#isClockBehind()) {
        await this.#writer.run('mendLaneTimes', { leaseMs, circuitMs: this.#circuitMs })
      }
    }
    if ((await this.due()) > 0) return []
    return this.#writer.run('claimLanes', { holder, leaseMs, quota, turnMessages })
  }

  /** Whether there are times further ahead than any that is set. */
  #isClockBehind(): boolean {
    const last = this.#sql.get`
      select max((
               select next_at from webhook_lanes
               where standing = kind.column1 and next_at is not null order by next_at desc limit 1)) as next_at,
             (select max(open_until) from webhook_lanes where standing = 'open') as open_until
      from (values ('unknown'), ('fast'), ('slow'), ('open')) as kind`
    const now = Date.now()
    return (
      ((last?.next_at ?? 0) as number) > now + MAX_DELAY_MS ||
      ((last?.open_until ?? 0) as number) > now + this.#circuitMs
    )
  }

  async due(): Promise<number> {
    const first = this.#sql.get`
      select min((
        select next_at from webhook_lanes
        where standing = kind.column1 and next_at is not null order by next_at limit 1)) as next_at
      from (values ('unknown'), ('fast'), ('slow'), ('open')) as kind`
    return ((first?.next_at ?? Number.POSITIVE_INFINITY) as number) - Date.now()
  }

  async renew(
    holder: string,
    claimed: readonly Pick<ClaimedLane, 'recipient' | 'claim'>[],
    leaseMs: number,
  ): Promise<Set<string>> {
    const claims = claimed.map(({ recipient, claim }) => ({ recipient, claim }))
    return new Set(await this.#writer.run('renewLanes', { holder, claims, leaseMs }))
  }

  async release(turn: LaneTurn): Promise<void> {
    await this.#writer.run('releaseLane', turn)
  }

  async backlog(): Promise<Backlog> {
    const row = this.#sql.get`
      select (select pending from webhook_totals) as messages,
             (select min(seq) from queued_messages where via_webhook = 1) as oldest,
             (select count(*) from webhook_lanes where standing = 'open' and open_until > ${Date.now()}) as open`
    const { messages, oldest, open } = row as {
      messages: number
      oldest: number | null
      open: number
    }
    return { messages, oldestSeq: oldest ?? undefined, openCircuits: open }
  }
}

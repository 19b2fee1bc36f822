/** Postgres, which a cluster keeps state and registry in. */
import { type Generated, Kysely, type Transaction } from 'kysely'
import { Counter, Histogram } from 'prom-client'
import {
  PostgresDialect,
  type PostgresOptions,
  PostgresPool,
  PostgresSession,
} from './postgres-dialect.ts'
import { SilenceTimeout } from './silence-timeout.ts'
import { Unavailable } from './unavailable.ts'

export interface Schema {
  operators: {
    operator_id: string
    token_lookup: Buffer
    token_hash: string
    staged_at: Generated<Date>
    seq: number | null
    revoked_at: Date | null
  }
  agents: {
    address: string
    operator_id: string
    token_lookup: Buffer
    token_hash: string
    webhook_url: string | null
    webhook_secret: string | null
    staged_at: Generated<Date>
    seq: number | null
    registered_at: Date | null
    revoked_at: Date | null
  }
  registry_totals: { agents: number; last_registered_at: Date }
  challenges: {
    challenge_id: string
    operator_id: string
    answer_hash: Buffer | null
    issued_at: Generated<Date>
    expires_at: Date
  }
  signing_keys: { name: string; key: Buffer }
  projections: {
    name: string
    applied_seq: number
    holder: string | null
    lease_expires_at: Date | null
  }
  erasures: { message: number; lines: string; reason: string; erased_at: Generated<Date> }
  removals: {
    seq: number
    ts: string
    action: string
    key: Buffer | null
    message_id: string | null
    reason: string
    performed_by: string
    content_hash: string
  }
  leases: { name: string; holder: string | null; expires_at: Generated<Date> }
  state: {
    key: Buffer
    value: Buffer
    size: number
    seq: number
    modified_by: string
    modified_at: Date
    delete_until: Date | null
  }
  state_usage: {
    used_bytes: number
    reserved_bytes: number
    allotted_bytes: number
    key_count: number
  }
  state_reservations: { id: string; key: Buffer; size: number; reserved_at: Generated<Date> }
  state_allotments: { id: string; bytes: number; renewed_at: Generated<Date> }
  queued_messages: { message_id: string; recipient: string; seq: number; via_webhook: boolean }
  queues: { recipient: string; length: number; dropped: number }
  webhook_lanes: {
    recipient: string
    last_seq: number
    pending: number
    next_at: Date | null
    holder: string | null
    claim: Generated<number>
    done_seq: Generated<number>
    retried_seq: Generated<number>
    attempts: Generated<number>
    standing: Generated<string>
    failures: Generated<number>
    open_until: Date | null
    bucket_full_at: Date | null
  }
}

export type Database = Kysely<Schema>
export type DatabaseTransaction = Transaction<Schema>

/**
 * The database did not answer, refused the connection, or is shutting down. Nothing is known of
 * what it did.
 */
export class DatabaseUnavailable extends Unavailable {
  override name = 'DatabaseUnavailable'
}

/**
 * How long a database that answers nothing is waited for before the request is answered 503. The
 * contract's clients retry.
 */
export const STATEMENT_TIMEOUT_MS = 1_000
/**
 * … and by a statement of maintenance, which may have to wait for locks: above what Postgres itself
 * lets a statement take and wait, so that it ends the statement, and not this process the
 * connections of all.
 */
export const MAINTENANCE_TIMEOUT_MS = 15_000

const pools = new WeakMap<Database, PostgresPool>()
const silences = new WeakMap<Database, SilenceTimeout>()

function silenceOf(database: Database): SilenceTimeout {
  const silence = silences.get(database) ?? new SilenceTimeout()
  silences.set(database, silence)
  return silence
}

/** Opens Postgres. Connects on first use. */
export function openPostgres(options: PostgresOptions): Database {
  const pool = new PostgresPool(options)
  const database = new Kysely<Schema>({ dialect: new PostgresDialect(pool) })
  pools.set(database, pool)
  return database
}

/**
 * Opens Postgres for an operator's command, which may take hours: one session, so that temporary
 * tables last, and no limit on how long a statement takes or waits for a lock. When the session is
 * lost, whatever is asked of it fails from then on.
 */
export function openPostgresSession(options: PostgresOptions): Database {
  return new Kysely<Schema>({ dialect: new PostgresDialect(new PostgresSession(options)) })
}

const duration = new Histogram({
  name: 'tabulum_database_seconds',
  help: 'Time of one round trip to the database, by what it was for.',
  labelNames: ['operation'] as const,
  buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2],
})
const failures = new Counter({
  name: 'tabulum_database_unavailable_total',
  help: 'Round trips to the database that failed because it could not be reached in time.',
  labelNames: ['operation'] as const,
})

/**
 * Runs one round trip with a deadline (so many milliseconds of silence, see `SilenceTimeout`) and a
 * name for its metrics. Throws `DatabaseUnavailable` when the database is out; lets errors of the
 * statement itself through, as those are defects.
 */
export async function roundTrip<T>(
  database: Database,
  operation: string,
  run: () => Promise<T>,
  timeoutMs = STATEMENT_TIMEOUT_MS,
): Promise<T> {
  const stop = duration.startTimer({ operation })
  try {
    return await silenceOf(database).wait(
      run(),
      timeoutMs,
      () => new DatabaseUnavailable('it does not answer'),
    )
  } catch (error) {
    if (error instanceof DatabaseUnavailable || isOutage(error)) {
      failures.inc({ operation })
      if (isOfConnection(error)) pools.get(database)?.replace()
      throw new DatabaseUnavailable('the database cannot be reached', { cause: error })
    }
    throw error
  } finally {
    stop()
  }
}

/**
 * Classes of SQLSTATE by which Postgres says that a statement of ours, or what it was given, is
 * wrong: not supported (0A), the case, cardinality, data and constraints (20 to 23), cursors (24,
 * 34), privileges and the end of transactions (2B, 2D), functions (2F, 38, 39), savepoints and
 * schemas (3B, 3F), syntax, names and rights (42), check options (44), limits of the program (54),
 * and what our own functions raise (P0). Asked again, it would answer the same.
 */
const MISTAKES = /^(0A|2[01234BDF]|3[489BF]|4[24]|54|P0)/
/** What the driver says of a call that is wrong. */
const DRIVER_MISTAKES =
  /^(UNDEFINED_VALUE|MAX_PARAMETERS_EXCEEDED|NOT_TAGGED_CALL|UNSAFE_TRANSACTION|COPY_IN_PROGRESS)$/
/**
 * Classes by which Postgres says that the connection is of no use any more: it ends, is read-only,
 * has lost its statements, or is broken.
 */
const ENDS_CONNECTION = /^(08|25|26|57P|XX)/

/**
 * Whether it is no answer to a statement of ours that is wrong. Postgres, the driver, the socket,
 * TLS and DNS all give their errors a code; one without a code was thrown by this program.
 */
export function isOutage(error: unknown): boolean {
  const code = codeOf(error)
  if (code === undefined) return false
  return isAnswer(error)
    ? !MISTAKES.test(code)
    : !(DRIVER_MISTAKES.test(code) || error instanceof TypeError || error instanceof RangeError)
}

/**
 * Whether other connections may fare better: not where the one that there was is well, and nothing
 * but this statement failed.
 */
function isOfConnection(error: unknown): boolean {
  return isAnswer(error) ? ENDS_CONNECTION.test(codeOf(error) ?? '') : true
}

/** Postgres answered. */
function isAnswer(error: unknown): boolean {
  return error instanceof Error && 'severity' in error
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined
}

/**
 * Erasing from the log in JetStream, as an administrator: what is left of a message is kept first,
 * so that its sequence number is never unknown.
 */
import { type JetStreamManager, type NatsConnection, NatsError } from 'nats'
import { seqOf } from '../events/batch.ts'
import type { LoggedEvent } from '../events/event.ts'
import { LogUnavailable } from '../events/event-log.ts'
import { STREAM } from '../events/event-stream.ts'
import { type Database, roundTrip } from '../platform/database.ts'
import { StartupError } from '../platform/startup-error.ts'
import { redacted } from './redaction.ts'

/** A message may be of 8 MiB, and is overwritten on each replica. */
const TIMEOUT_MS = 10_000
const ASK_TIMEOUT_MS = 5_000
/** The stream holds no such message. */
const NO_MESSAGE_FOUND = 10037

export class LogEraser {
  readonly #connection: NatsConnection
  readonly #manager: JetStreamManager
  readonly #database: Database

  private constructor(connection: NatsConnection, manager: JetStreamManager, database: Database) {
    this.#connection = connection
    this.#manager = manager
    this.#database = database
  }

  /**
   * Takes over the connection. Throws `StartupError` where its user may not delete from the stream.
   */
  static async open(connection: NatsConnection, database: Database): Promise<LogEraser> {
    try {
      // Any answer says that the user may ask: this deletes nothing.
      await connection.request(`$JS.API.STREAM.MSG.DELETE.${STREAM}`, '', {
        timeout: ASK_TIMEOUT_MS,
      })
      const manager = await connection.jetstreamManager({ timeout: TIMEOUT_MS, checkAPI: false })
      return new LogEraser(connection, manager, database)
    } catch (error) {
      await connection.close()
      const reason = error instanceof Error ? error.message : String(error)
      throw new StartupError(
        `NATS_ADMIN_URL is to name a user who may delete from the log, admin of deploy/nats: ${reason}`,
      )
    }
  }

  /**
   * Erases a message of the stream; of these events of it nothing but the redaction is left, of the
   * others all. One that was erased already loses the content of these. Throws `Unavailable`; done
   * again, it goes on.
   */
  async erase(message: number, events: readonly number[], reason: string): Promise<void> {
    const stored = await this.#stored(message)
    await this.#keep(message, stored, events, reason)
    if (stored === undefined) return
    try {
      await this.#manager.streams.deleteMessage(STREAM, message, true)
    } catch (error) {
      // One that is gone is what was wanted: an answer may have been lost.
      if ((await this.#stored(message)) !== undefined)
        throw new LogUnavailable(this.#told(error), { cause: error })
    }
  }

  /** The lines of a message; undefined where the stream has it no more. */
  async #stored(message: number): Promise<string | undefined> {
    try {
      const { data } = await this.#manager.streams.getMessage(STREAM, { seq: message })
      return Buffer.from(data).toString('utf8')
    } catch (error) {
      if (error instanceof NatsError && error.api_error?.err_code === NO_MESSAGE_FOUND)
        return undefined
      throw new LogUnavailable(this.#told(error), { cause: error })
    }
  }

  /** Keeps what is left of a message. */
  async #keep(
    message: number,
    stored: string | undefined,
    events: readonly number[],
    reason: string,
  ): Promise<void> {
    const keeping = this.#database.transaction().execute(async (transaction) => {
      if (stored !== undefined) {
        const row = { message, reason, lines: withoutContents(message, stored, events, reason) }
        await transaction
          .insertInto('erasures')
          .values(row)
          .onConflict((conflict) => conflict.doNothing())
          .execute()
      }
      const before = await transaction
        .selectFrom('erasures')
        .select('lines')
        .where('message', '=', message)
        .forUpdate()
        .executeTakeFirst()
      if (before === undefined)
        throw new LogUnavailable(`message ${message} is neither in the log nor among the erasures`)
      const lines = withoutContents(message, before.lines, events, reason)
      if (lines === before.lines) return
      await transaction
        .updateTable('erasures')
        .set({ lines })
        .where('message', '=', message)
        .execute()
    })
    await roundTrip(this.#database, 'keep_erasure', () => keeping, TIMEOUT_MS)
  }

  #told(error: unknown): string {
    const reason = error instanceof Error ? error.message : String(error)
    return `the event log cannot be erased from: ${reason}`
  }

  async close(): Promise<void> {
    await this.#connection.close()
  }
}

/** Lines of a batch, of which these events say no more what they said. */
export function withoutContents(
  message: number,
  lines: string,
  events: readonly number[],
  reason: string,
): string {
  return lines
    .split('\n')
    .map((line, index) => {
      const seq = seqOf(message, index)
      if (!events.includes(seq)) return line
      const parsed = JSON.parse(line) as LoggedEvent
      return JSON.stringify({ ...parsed, data: redacted(parsed, { reason }).data })
    })
    .join('\n')
}

/** Structured logs, a JSON object a line on standard output. Never a token, never content. */
import { type Logger, pino } from 'pino'

export type { Logger }

export function createLogger(level: string, role: string): Logger {
  const output = pino.destination({ dest: 1, sync: true })
  // What nobody can read any more, as when the terminal was closed, is lost; the work is not.
  output.on('error', () => {})
  const options = {
    level,
    base: { role },
    timestamp: pino.stdTimeFunctions.isoTime,
    serializers: { err: describeError },
  }
  return pino(options, output)
}

/** Causes of causes that are told at most. */
const MAX_CAUSES = 5
/** Frames of a stack that are told at most, and characters of a message. */
const MAX_FRAMES = 30
const MAX_MESSAGE_LENGTH = 1_000
/**
 * Classes of SQLSTATE whose messages quote the data that was wrong: data exceptions and violated
 * constraints.
 */
const QUOTING = /^(22|23)/

interface ErrorLine {
  type: string
  message: string
  code?: string
  stack?: string[]
  cause?: ErrorLine
}

/**
 * What is told of an error: its class, message, code, stack and causes. Nothing else that it may
 * carry: drivers add statements with their parameters, and Postgres the row that it refused.
 */
export function describeError(error: unknown, depth = 0): ErrorLine {
  if (!(error instanceof Error))
    return { type: typeof error, message: 'something that is no Error was thrown' }
  const code = 'code' in error && typeof error.code === 'string' ? error.code : undefined
  const isAnswer = 'severity' in error
  const message =
    isAnswer && code && QUOTING.test(code) ? '(not shown: it may quote data)' : error.message
  const lines = (error.stack ?? '').split('\n').slice(error.message.split('\n').length)
  const frames = lines.flatMap((line) => (/^\s+at /.test(line) ? line.trim() : []))
  return {
    type: error.name,
    message: message.slice(0, MAX_MESSAGE_LENGTH),
    ...(code !== undefined && { code }),
    ...(frames.length > 0 && { stack: frames.slice(0, MAX_FRAMES) }),
    ...(error.cause !== undefined &&
      depth < MAX_CAUSES && { cause: describeError(error.cause, depth + 1) }),
  }
}

/** Structured logs, a JSON object a line on standard output. Never a token, never content. */
import { type Logger, pino } from 'pino'

export type { Logger }

export function createLogger(level: string, role: string): Logger {
  const output = pino.destination({ dest: 1, sync: true })
  // What nobody can read any more, as when the terminal was closed, is lost; the work is not.
  output.on('error', () => {})
  return pino({ level, base: { role }, timestamp: pino.stdTimeFunctions.isoTime }, output)
}

/** Structured logs, a JSON object a line on standard output. Never a token, never content. */
import { type Logger, pino } from 'pino'

export type { Logger }

export function createLogger(level: string, role: string): Logger {
  return pino({ level, base: { role }, timestamp: pino.stdTimeFunctions.isoTime })
}

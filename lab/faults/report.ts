/**
 * What was broken in a run, by kind: how often, what agents noticed of it, and what shows that it
 * really happened.
 */
import { FAULTS } from './faults.ts'
import type { FaultRecord, History } from './history.ts'

/**
 * A line for each kind: its number, its name, how many requests had no answer or a 503 meanwhile,
 * and what was seen.
 */
export function reportOf({ faults, operations }: Pick<History, 'faults' | 'operations'>): string {
  const failed = operations.filter(({ status }) => status === 503 || status === 0)
  const failedDuring = ({ began, repaired }: FaultRecord) =>
    failed.filter((operation) => operation.began <= repaired && operation.ended >= began).length
  const lines = [...Map.groupBy(faults, ({ name }) => name)].map(([name, all]) => {
    const requests = all.reduce((sum, fault) => sum + failedDuring(fault), 0)
    const seen = all.reduce((sum, fault) => sum + (fault.seen ?? 0), 0)
    const shows = FAULTS.find((fault) => fault.name === name)?.shows
    const count = String(all.length).padStart(4)
    return `${count} ${name}: ${requests} requests failed meanwhile${shows === undefined ? '' : `; ${seen} ${shows}`}`
  })
  return lines.join('\n')
}

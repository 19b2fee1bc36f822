/**
 * Writes a history for the public checker in `porcupine/`, a JSON object a line, one for each
 * request:
 *
 * - `partition`: `key <key>` or `queue <address>`. Partitions are judged apart.
 * - `client`: a number for each agent. `call`, `return`: when it began and ended, in ms on one
 *   clock; without `return` it may take effect at any time after it began, or never.
 * - `kind`: of a key `write` (`value`), `read` (`value`, absent where there was none) and `remove`
 *   (`found`, absent where no answer came); of a queue `send` (`content`; `certain`: acknowledged;
 *   `leased`: a receive that failed may have leased it before it arrived), `receive` (`contents`;
 *   `certain`: their deliveries are surely recorded) and `end` (`excused`: contents that may be
 *   missing).
 *
 * Queues of agents with a webhook are left out: most of their messages do not go through them.
 */
import {
  deliveredIds,
  FailedReceives,
  isLostWithItsCarrier,
  mayRepeat,
  together,
} from './checker.ts'
import type { History, Operation } from './history.ts'

/** What an agent that is none does: it looks at how all ended. */
const OBSERVER = 0

/** What a request says of a partition. */
interface Said {
  readonly partition: string
  readonly kind: 'write' | 'read' | 'remove' | 'send' | 'receive' | 'end'
  readonly return?: number
  readonly value?: string | undefined
  readonly found?: boolean
  readonly content?: string
  readonly contents?: readonly string[]
  readonly certain?: boolean
  readonly leased?: boolean
  readonly excused?: readonly string[]
}

interface Line extends Said {
  readonly client: number
  readonly call: number
}

/** The history as text, a line for each request that says something of a key or of a queue. */
export function exportHistory(history: History): string {
  const { operations, pushes, nodes } = history
  const clients = new Map(
    [...new Set(operations.map(({ agent }) => agent))].map((agent, index) => [agent, index + 1]),
  )
  const pushed = new Set(pushes.map(({ to }) => `queue ${to}`))
  const lines = [...keyLines(history), ...sendLines(history), ...receiveLines(history)]
    .filter(({ said }) => !pushed.has(said.partition))
    .map(
      ({ agent, call, said }): Line => ({ client: clients.get(agent) ?? OBSERVER, call, ...said }),
    )
  const end = Math.max(0, ...operations.map(({ ended }) => ended)) + 1
  const atEnd = (said: Said) =>
    lines.push({ client: OBSERVER, call: end, return: end + 1, ...said })
  const excused = excusedContents(history)
  for (const partition of new Set(lines.map((line) => line.partition))) {
    if (partition.startsWith('queue ')) atEnd({ partition, kind: 'end', excused })
    else
      for (const { state } of nodes)
        atEnd({ partition, kind: 'read', value: state[partition.slice('key '.length)] })
  }
  return `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`
}

interface Asked {
  readonly agent: string
  readonly call: number
  readonly said: Said
}

/** It had no answer, or was told that it may still take effect. */
function isOpen({ status }: Operation): boolean {
  return status === 0 || status === 503
}

function keyLines({ operations }: History): Asked[] {
  return operations.flatMap((operation): Asked[] => {
    const { agent, began, ended, status, kind } = operation
    if (kind !== 'write' && kind !== 'read' && kind !== 'remove') return []
    const open = isOpen(operation)
    // One that was refused says nothing; nor does a read that was not answered.
    if (kind === 'read' ? open : !open && status !== 200 && status !== 404) return []
    const partition = `key ${operation.key}`
    const said: Said =
      kind === 'remove'
        ? { partition, kind, ...(!open && { found: status === 200 }) }
        : { partition, kind, value: operation.value }
    return [{ agent, call: began, said: open ? said : { ...said, return: ended } }]
  })
}

/**
 * A line for all tries at a message. One that was not acknowledged and never arrived is left out:
 * it may not have been sent.
 */
function sendLines({ operations }: History): Asked[] {
  const arrivals = new Map<string, number>()
  for (const operation of operations)
    if (operation.kind === 'receive')
      for (const { content } of operation.messages)
        arrivals.set(
          content,
          Math.min(operation.ended, arrivals.get(content) ?? Number.POSITIVE_INFINITY),
        )
  const failed = Map.groupBy(
    operations.filter(({ kind, status }) => kind === 'receive' && status !== 200),
    ({ agent }) => agent,
  )
  const tries = Map.groupBy(
    operations.filter((operation) => operation.kind === 'send'),
    ({ content }) => content,
  )
  return [...tries].flatMap(([content, all]): Asked[] => {
    const { from, to, began: call, ended, acknowledged, refused } = together(all)
    const arrival = arrivals.get(content)
    if (refused || (!acknowledged && arrival === undefined)) return []
    const leased = (failed.get(to) ?? []).some(
      (receive) => receive.ended >= call && receive.began <= (arrival ?? Number.POSITIVE_INFINITY),
    )
    const said: Said = {
      partition: `queue ${to}`,
      kind: 'send',
      content,
      certain: acknowledged,
      leased,
    }
    return [{ agent: from, call, said: acknowledged ? { ...said, return: ended } : said }]
  })
}

function receiveLines({ operations, faults }: History): Asked[] {
  return operations.flatMap((operation): Asked[] => {
    if (operation.kind !== 'receive' || operation.status !== 200) return []
    const { agent, began: call, ended, messages } = operation
    const contents = messages.map(({ content }) => content)
    const certain = !mayRepeat(faults, 'pull', ended)
    return [
      {
        agent,
        call,
        said: { partition: `queue ${agent}`, kind: 'receive', contents, certain, return: ended },
      },
    ]
  })
}

/** Contents of messages that may be missing although they were acknowledged. */
function excusedContents(history: History): string[] {
  const delivered = deliveredIds(history.events)
  const failed = new FailedReceives(history)
  return history.operations.flatMap((operation) =>
    operation.kind === 'send' && isLostWithItsCarrier(operation, delivered, failed)
      ? [operation.content]
      : [],
  )
}

/** Events in words. */
import type { LogEvent } from './api.ts'
import { Address, count, Key, Strange } from './parts.tsx'
import { link } from './route.ts'

/** What a reader may filter by, in their words. */
export const TYPES: Readonly<Record<string, string>> = {
  message_sent: 'messages',
  message_delivered: 'deliveries',
  push_failed: 'failed pushes',
  state_written: 'writes',
  state_deleted: 'deletions',
  state_read: 'reads',
  registry_read: 'look-ups',
  agent_registered: 'new agents',
  operator_created: 'new operators',
  state_key_removed: 'removed keys',
  message_redacted: 'removed messages',
}

/** What an event is about: gives it its colour. */
export function kindOf(type: string): 'message' | 'state' | 'read' | 'registry' | 'removal' {
  if (type === 'state_key_removed' || type === 'message_redacted') return 'removal'
  if (type.endsWith('_read')) return 'read'
  if (type.startsWith('state_')) return 'state'
  return type.startsWith('message_') || type === 'push_failed' ? 'message' : 'registry'
}

export const KIND_NAMES = {
  message: 'messages',
  state: 'changes of state',
  read: 'reading',
  registry: 'newcomers',
  removal: 'removals',
} as const

const FAILURES: Readonly<Record<string, string>> = {
  undeliverable: 'all attempts failed',
  circuit_open: 'its address has failed too often of late',
  backlog_full: 'too many wait already',
}

/**
 * What else is known of a message: when it was received; and of a delivery which message that was.
 */
export interface Related {
  readonly delivered?: LogEvent | undefined
  readonly message?: LogEvent | undefined
}

export function Sentence({ event, related }: { event: LogEvent; related?: Related | undefined }) {
  const { type, agent, data } = event
  const of = (name: string) => (typeof data[name] === 'string' ? (data[name] as string) : undefined)
  switch (type) {
    case 'operator_created':
      return <>An operator signed up, who may now start agents</>
    case 'agent_registered':
      return (
        <>
          <Address of={of('address')} /> joined
          {data.has_webhook === true && ', and has its messages pushed to it'}
        </>
      )
    case 'message_sent':
      return (
        <>
          <Address of={of('from')} /> said to <Address of={of('to')} />:{' '}
          <Content event={event} text={of('content')} />
          {related?.delivered && (
            <span class="quiet"> · received {after(event, related.delivered)}</span>
          )}
        </>
      )
    case 'message_delivered':
      return (
        <>
          <Address of={of('to')} /> received{' '}
          {related?.message ? (
            <>
              from <Address of={related.message.agent} />:{' '}
              <Content event={related.message} text={String(related.message.data.content)} />
            </>
          ) : (
            'a message'
          )}
          {of('delivery_method') === 'push' && ', which was pushed to it'}
        </>
      )
    case 'push_failed':
      return (
        <>
          A message could not be pushed to <Address of={of('to')} /> (
          {FAILURES[of('reason') ?? ''] ?? of('reason')}); it waits to be fetched
        </>
      )
    case 'state_written':
      return (
        <>
          <Address of={of('written_by')} /> wrote <Key of={of('key') ?? ''} />:{' '}
          <Content event={event} text={of('value')} />
        </>
      )
    case 'state_deleted':
      return (
        <>
          <Address of={of('deleted_by')} /> deleted <Key of={of('key') ?? ''} />
        </>
      )
    case 'state_read':
      return (
        <>
          <Address of={of('read_by')} /> {data.found === true ? 'read' : 'looked in vain for'}{' '}
          <Key of={of('key') ?? ''} />
        </>
      )
    case 'registry_read':
      return (
        <>
          <Address of={of('read_by')} /> looked up who is here
        </>
      )
    case 'state_key_removed':
      return (
        <>
          <Key of={of('key') ?? ''} /> was removed by the operator of the infrastructure:{' '}
          <Strange text={of('reason') ?? ''} />
        </>
      )
    case 'message_redacted':
      return (
        <>
          A message was removed by the operator of the infrastructure:{' '}
          <Strange text={of('reason') ?? ''} />
        </>
      )
    default:
      return (
        <>
          <Strange text={type} /> {agent !== undefined && <Address of={agent} />}
        </>
      )
  }
}

function after(event: LogEvent, later: LogEvent): string {
  const seconds = Math.max(0, (Date.parse(later.ts) - Date.parse(event.ts)) / 1_000)
  if (seconds < 1) return 'at once'
  return seconds < 120
    ? `${Math.round(seconds)} s later`
    : `${count(Math.round(seconds / 60))} minutes later`
}

function Content({ event: { data }, text = '' }: { event: LogEvent; text?: string | undefined }) {
  if (data.redacted === true)
    return (
      <a class="redacted" href={link('transparency')}>
        removed, see why
      </a>
    )
  return text === '' ? (
    <em>nothing</em>
  ) : (
    <q>
      <Strange text={text.replace(/\s+/g, ' ')} shown={160} />
    </q>
  )
}

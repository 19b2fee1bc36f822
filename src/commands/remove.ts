/** `remove`: removes content that is illegal to host, and lists what was removed. */
import { z } from 'zod'
import type { Config } from '../config.ts'
import { StartupError } from '../platform/startup-error.ts'
import { escapeControls, isAtTerminal, isConfirmed } from '../platform/terminal.ts'
import { Unavailable } from '../platform/unavailable.ts'
import {
  erase,
  findKey,
  findMessage,
  hashOf,
  type Message,
  type OnProgress,
  type RemovalDetails,
  type RemovalEvent,
  type RemovalStore,
  redactMessage,
  removeKey,
} from '../removal/removal-store.ts'
import type { Removal } from '../removal/removals.ts'
import { withClusterRemovals } from '../storage/cluster.ts'
import { withEmbeddedRemovals } from '../storage/embedded.ts'

type Flags = Readonly<Record<string, boolean | undefined>>
type Options = Readonly<Record<string, string | undefined>>

/** The options that each takes beside those that all removals do. */
const SUBCOMMANDS: Readonly<Record<string, readonly string[]>> = {
  state: ['key', 'encoded-key'],
  message: ['id'],
  list: [],
}
const OF_ALL_REMOVALS = ['reason', 'by', 'erase', 'yes', 'dry-run']

const MAX_REASON = 1_000
const MAX_NAME = 200
const LISTED_AT_ONCE = 500

/** What is to be done with what was found. */
interface Order extends RemovalDetails {
  readonly isConfirmed: boolean
  readonly isDryRun: boolean
  /** The original goes too. */
  readonly erases: boolean
}

export async function remove(
  config: Config,
  args: readonly string[],
  flags: Flags,
  options: Options,
): Promise<void> {
  const [subcommand = '', ...rest] = args
  const own = Object.hasOwn(SUBCOMMANDS, subcommand) ? SUBCOMMANDS[subcommand] : undefined
  if (own === undefined)
    throw new StartupError('remove takes what to remove: state or message; or list')
  const takes = subcommand === 'list' ? [] : [...own, ...OF_ALL_REMOVALS]
  const given = Object.entries({ ...flags, ...options }).flatMap(([name, value]) =>
    value === undefined ? [] : name,
  )
  const wrong =
    rest.length > 0 ? JSON.stringify(rest[0]) : given.find((name) => !takes.includes(name))
  if (wrong !== undefined) {
    const right = takes.length === 0 ? 'nothing else' : takes.map((name) => `--${name}`).join(', ')
    throw new StartupError(
      `remove ${subcommand} does not take ${rest.length > 0 ? wrong : `--${wrong}`}: it takes ${right}`,
    )
  }
  if (subcommand === 'list') return withStore(config, { isDryRun: true, erases: false }, list)
  const order = orderOf(flags, options)
  if (order.erases && config.cluster && config.NATS_ADMIN_URL.length === 0) {
    throw new StartupError(
      '--erase needs NATS_ADMIN_URL: as NATS_URL, with the user who may delete from the log (admin of deploy/nats)',
    )
  }
  const work =
    subcommand === 'state'
      ? (
          (key) => (store: RemovalStore) =>
            removeState(store, key, order)
        )(keyOf(options))
      : (
          (id) => (store: RemovalStore) =>
            removeMessage(store, id, order)
        )(idOf(options))
  await withStore(config, order, work)
}

async function withStore(
  config: Config,
  { isDryRun, erases }: Pick<Order, 'isDryRun' | 'erases'>,
  work: (store: RemovalStore) => Promise<void>,
): Promise<void> {
  try {
    await (config.cluster
      ? withClusterRemovals(config, { erases: erases && !isDryRun }, work)
      : withEmbeddedRemovals(config, { isReadOnly: isDryRun, erases }, work))
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error
    const cause = error.cause instanceof Error ? `: ${error.cause.message}` : ''
    throw new StartupError(
      `${error.message}${cause} (what was removed until now is in \`remove list\`)`,
      {
        cause: error,
      },
    )
  }
}

function orderOf(flags: Flags, { reason, by = 'operator' }: Options): Order {
  if (reason === undefined || reason.trim() === '') {
    throw new StartupError(
      '--reason is missing: why it is illegal to host, such as "court order 12/2026"; it is public',
    )
  }
  const order = {
    reason: textOf('reason', reason, MAX_REASON),
    performedBy: textOf('by', by, MAX_NAME),
    isConfirmed: flags.yes === true,
    isDryRun: flags['dry-run'] === true,
    erases: flags.erase === true,
  }
  if (!order.isConfirmed && !order.isDryRun && !isAtTerminal()) {
    throw new StartupError(
      'there is no terminal to ask on: add --yes, or --dry-run to see what would be done',
    )
  }
  return order
}

function textOf(name: string, text: string, most: number): string {
  const trimmed = text.trim()
  if (
    trimmed === '' ||
    trimmed.length > most ||
    /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}\p{Bidi_Control}]/u.test(trimmed)
  ) {
    throw new StartupError(`--${name} is to be a line of 1 to ${most} characters`)
  }
  return trimmed
}

function keyOf({ key, 'encoded-key': encoded }: Options): string {
  if ((key === undefined) === (encoded === undefined)) {
    throw new StartupError(
      'remove state takes the key to remove: --key, or percent-encoded --encoded-key',
    )
  }
  try {
    const decoded = key ?? decodeURIComponent(encoded ?? '')
    if (decoded !== '') return decoded
  } catch {
    // Said below.
  }
  throw new StartupError(
    `${JSON.stringify(key ?? encoded)} is no key: a key has 1 to 1,024 bytes of UTF-8`,
  )
}

function idOf({ id }: Options): string {
  const parsed = z.uuid().safeParse(id?.toLowerCase())
  if (parsed.success) return parsed.data
  throw new StartupError('remove message takes the id of the message to remove: --id <UUID>')
}

async function removeState(store: RemovalStore, key: string, order: Order): Promise<void> {
  const name = `state key ${printed(key)}`
  const found = await findKey(store, key, tellProgress)
  if (found === undefined) throw new StartupError(`there is no ${name}, and never was`)
  const { value, removal } = found
  if (value === undefined) return eraseRemoved(store, name, removal, order)
  console.error(
    `${name}: ${found.isPresent ? 'its value' : 'it is deleted already; the last value that it had'} has ` +
      `${size(value)}. The redaction will be shown in the place of every value that it had, and agents get 404.`,
  )
  if (await isRefused(order)) return
  const { event, seq } = await removeKey(store, key, found, order)
  await tellOutcome(store, name, event, seq)
  if (order.erases) await eraseAll(store, name, { seq, key, reason: order.reason })
}

async function removeMessage(store: RemovalStore, id: string, order: Order): Promise<void> {
  const name = `message ${id}`
  const removal = (await store.removals.ofMessages([id])).get(id)
  if (removal !== undefined) return eraseRemoved(store, name, removal, order)
  const message = await findMessage(store, id, tellProgress)
  if (message === undefined) throw new StartupError(`there is no ${name} in the log`)
  const { from, to, content } = message.data
  console.error(
    `${name}, sent ${message.ts} from ${from} to ${to}: its content has ${size(content)}. The redaction will be shown ` +
      `in its place, and if it was not fetched yet it arrives so.`,
  )
  if (await isRefused(order)) return
  const { event, seq } = await redactMessage(store, message, order)
  await tellOutcome(store, name, event, seq)
  if (order.erases)
    await eraseAll(store, name, { seq, message_id: id, reason: order.reason }, message)
}

/** What was removed already can be erased still, and what was begun is ended. */
async function eraseRemoved(
  store: RemovalStore,
  name: string,
  removal: Removal | undefined,
  order: Order,
): Promise<void> {
  const when = `${name} was removed already, ${removal?.ts} (event ${removal?.seq}): ${escapeControls(removal?.reason ?? '')}`
  if (removal === undefined || !order.erases) throw new StartupError(when)
  console.error(when)
  if (await isRefused(order)) return
  await eraseAll(store, name, removal)
}

async function eraseAll(
  store: RemovalStore,
  name: string,
  removal: Pick<Removal, 'seq' | 'key' | 'message_id' | 'reason'>,
  message?: Message,
): Promise<void> {
  const { erased, left } = await erase(store, removal, tellProgress, message)
  console.log(`Erased what ${name} said from ${erased} event${erased === 1 ? '' : 's'} of the log.`)
  for (const sentence of left) console.log(`Left to you: ${sentence}.`)
}

/** Whether nothing is to be done: it was to be told only, or who was asked says no. */
async function isRefused({
  isDryRun,
  isConfirmed: isSure,
  reason,
  erases,
}: Order): Promise<boolean> {
  if (isDryRun) {
    if (erases) console.error('The original would be erased from the log and all stores.')
    console.log('Nothing was changed: this was a dry run.')
    return true
  }
  const what = erases ? 'Remove it and erase the original' : 'Remove it'
  if (
    isSure ||
    (await isConfirmed(`${what} for ${JSON.stringify(reason)}, which is public, for ever?`))
  )
    return false
  console.log('Nothing was changed.')
  process.exitCode = 1
  return true
}

async function tellOutcome(
  store: RemovalStore,
  name: string,
  event: RemovalEvent,
  seq: number,
): Promise<void> {
  const late = await store.inForce(event, seq)
  if (late === undefined)
    console.log(`Removed ${name}: event ${seq}, SHA-256 ${event.data.content_hash}.`)
  else {
    console.log(
      `The removal of ${name} is in the log as event ${seq}, and not in force yet: ${late}. It will be as soon as that is there.`,
    )
    process.exitCode = 1
  }
}

async function list(store: RemovalStore): Promise<void> {
  for (let after = 0; ; ) {
    const { removals } = await store.removals.list({ after, limit: LISTED_AT_ONCE })
    for (const removal of removals) console.log(lineOf(removal))
    const last = removals.at(-1)
    if (last === undefined) return
    after = last.seq
  }
}

function lineOf({
  seq,
  ts,
  action,
  key,
  message_id,
  reason,
  performed_by,
  content_hash,
}: Removal): string {
  const what = key === undefined ? message_id : printed(key)
  return `${ts} ${seq} ${action} ${what} ${content_hash} by ${escapeControls(performed_by)}: ${escapeControls(reason)}`
}

const tellProgress: OnProgress = ({ events, last }) =>
  console.error(
    `Reading the log: ${events.toLocaleString('en')} events so far, the last of ${last.ts}.`,
  )

function size(content: string): string {
  return `${Buffer.byteLength(content).toLocaleString('en')} bytes, SHA-256 ${hashOf(content)}`
}

function printed(key: string): string {
  return escapeControls(JSON.stringify(key))
}

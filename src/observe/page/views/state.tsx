/** What agents keep together: keys and values, and what became of them. */
import { useSignal } from '@preact/signals'
import { diffLines, diffWordsWithSpace } from 'diff'
import { useMemo } from 'preact/hooks'
import {
  ask,
  type History,
  query,
  type StatePage,
  type StateValue,
  statePath,
  useLoaded,
} from '../api.ts'
import { asOf, moment } from '../clock.ts'
import { JsonTree } from '../json.tsx'
import {
  Address,
  count,
  counted,
  Key,
  LongText,
  Panel,
  Strange,
  size,
  Time,
  visible,
  Waiting,
} from '../parts.tsx'
import { change, link, route } from '../route.ts'
import { useThen } from '../then.ts'

const PAGE = 200
/** Held at once, of one prefix; who wants others narrows it. */
const MOST_KEYS = 2_000

type Listed = StatePage['keys'][number]

export function StateView() {
  const { parameters } = route.value
  const key = parameters.get('key')
  return key === null ? <Keys /> : <OneKey key={key} of={key} />
}

function Keys() {
  const { parameters } = route.value
  const prefix = parameters.get('prefix') ?? ''
  const isList = parameters.get('as') === 'list'
  const { data, refused } = useThen<StatePage>('/observe/state', { prefix, limit: PAGE })
  const at = asOf.value
  const more = useSignal<
    { prefix: string; at: number | undefined; keys: Listed[]; next: string | null } | undefined
  >(undefined)
  const isLoading = useSignal(false)
  const further = more.value?.prefix === prefix && more.value.at === at ? more.value : undefined
  const keys = [...(data?.keys ?? []), ...(further?.keys ?? [])]
  const next = further ? further.next : (data?.next_cursor ?? null)
  const load = () => {
    isLoading.value = true
    ask<StatePage>(
      query('/observe/state', { prefix, limit: PAGE, cursor: next ?? undefined, at }),
      AbortSignal.timeout(60_000),
    )
      .then((page) => {
        more.value = {
          prefix,
          at,
          keys: [...(further?.keys ?? []), ...page.keys],
          next: page.next_cursor,
        }
      })
      .catch(() => undefined)
      .finally(() => {
        isLoading.value = false
      })
  }
  return (
    <>
      <form class="filters" aria-label="Filters" onSubmit={(event) => event.preventDefault()}>
        <label class="field">
          keys that begin with
          <input
            type="search"
            value={prefix}
            spellcheck={false}
            placeholder="answers/"
            onInput={({ currentTarget }) => change({ prefix: currentTarget.value || undefined })}
          />
        </label>
        <label class="chip">
          <input
            type="checkbox"
            checked={isList}
            onChange={() => change({ as: isList ? undefined : 'list' })}
          />
          as one list
        </label>
      </form>
      <Crumbs prefix={prefix} />
      {!data && <Waiting refused={refused} />}
      {data && (
        <p class="quiet" role="status">
          {keys.length === 0
            ? 'There are no such keys.'
            : counted(data.total ?? keys.length, 'key')}
          {next !== null && `; the first ${count(keys.length)} are shown`}
        </p>
      )}
      <ul class="keys">
        {group(keys, prefix, isList).map((entry) =>
          'folder' in entry ? (
            <li key={`/${entry.folder}`} class="folder">
              <a class="key" href={link('state', { prefix: entry.folder })}>
                <Strange
                  text={entry.folder.slice(prefix.length).replaceAll('\n', '␊')}
                  shown={120}
                />
              </a>
              <span>
                {counted(entry.keys, 'key')}
                {next !== null && ' or more'}
              </span>
            </li>
          ) : (
            <li key={entry.key}>
              <Key of={entry.key} />
              <span>
                {size(entry.value_length)}, by <Address of={entry.last_modified_by} />
              </span>
              <Time at={entry.last_modified_at} />
            </li>
          ),
        )}
      </ul>
      {next !== null && keys.length < MOST_KEYS && (
        <button type="button" disabled={isLoading.value} onClick={load}>
          {isLoading.value ? 'Loading…' : 'More keys'}
        </button>
      )}
      {next !== null && keys.length >= MOST_KEYS && (
        <p class="quiet">Give a longer beginning to see others.</p>
      )}
    </>
  )
}

type Entry = Listed | { folder: string; keys: number }

/** As a tree by `/`: below the prefix what shares the next part is one entry. */
function group(keys: readonly Listed[], prefix: string, isList: boolean): Entry[] {
  if (isList) return [...keys]
  const groups = Map.groupBy(keys, ({ key }) => {
    const end = key.indexOf('/', prefix.length)
    return end < 0 ? undefined : key.slice(0, end + 1)
  })
  const folders = [...groups].flatMap(([folder, its]) =>
    folder === undefined ? [] : [{ folder, keys: its.length }],
  )
  return [...folders, ...(groups.get(undefined) ?? [])]
}

function Crumbs({ prefix }: { prefix: string }) {
  const parts = prefix.split(/(?<=\/)/).filter((part) => part !== '')
  return (
    <nav class="crumbs" aria-label="Where in the state">
      <a href={link('state')}>all keys</a>
      {parts.map((part, index) => {
        const upTo = parts.slice(0, index + 1).join('')
        return (
          <a key={upTo} href={link('state', { prefix: upTo })}>
            <Strange text={part.replaceAll('\n', '␊')} shown={60} />
          </a>
        )
      })}
    </nav>
  )
}

function OneKey({ of: key }: { of: string }) {
  // A browser takes these two for places in the path.
  const isUnreachable = key === '.' || key === '..' || key === ''
  const at = moment.value
  const value = useThen<StateValue>(isUnreachable ? undefined : statePath(key))
  const history = useLoaded<History>(isUnreachable ? undefined : `${statePath(key)}/history`, {
    isLive: true,
  })
  const versions = history.data?.versions ?? []
  const current = versions.findIndex(({ seq }) => at === undefined || seq <= at)
  const { data, refused } = value
  const folder = key.slice(0, key.lastIndexOf('/') + 1)
  return (
    <>
      <Crumbs prefix={folder} />
      <h2 class="title">
        <Strange text={key.replaceAll('\n', '␊')} shown={500} />
      </h2>
      {isUnreachable && (
        <Waiting>
          A browser cannot ask for a key of this name. The feed shows what was written to it.
        </Waiting>
      )}
      {at !== undefined && (
        <p class="notice">
          As it was after event {count(at)}.{' '}
          <a href={link('state', { key, at: undefined })}>Show it as it is now</a>
        </p>
      )}
      {!isUnreachable && !data && (
        <Waiting refused={undefined}>
          {refused
            ? refused.status === 404
              ? 'There is no such key at this time.'
              : refused.message
            : undefined}
        </Waiting>
      )}
      {data && <Value value={data} />}
      {data && !data.redacted && (
        <Changes of={key} now={versions[current]} before={versions[current + 1]} value={data} />
      )}
      <Panel title="What became of it">
        {history.data ? (
          <ol class="ranking versions">
            {versions.map((version, index) => (
              <li key={version.seq} class={index < current ? 'later' : ''}>
                <span>
                  {version.type === 'state_written' && (
                    <>
                      written by <Address of={version.agent} />
                    </>
                  )}
                  {version.type === 'state_deleted' && (
                    <>
                      deleted by <Address of={version.agent} />
                    </>
                  )}
                  {version.type === 'state_key_removed' && (
                    <>
                      removed, <a href={link('transparency')}>see why</a>
                    </>
                  )}
                </span>
                {version.value_length !== null && (
                  <a
                    href={link('state', { key, at: version.seq })}
                    aria-current={index === current ? 'true' : undefined}
                  >
                    {size(version.value_length)}
                  </a>
                )}
                <Time at={version.ts} />
              </li>
            ))}
          </ol>
        ) : (
          <Waiting>
            {history.refused || isUnreachable ? 'Nothing is known of it.' : undefined}
          </Waiting>
        )}
        {history.data?.next_cursor && <p class="quiet">Older versions are in the feed.</p>}
      </Panel>
    </>
  )
}

type Version = History['versions'][number]
/** Characters of two versions that are compared; and how long that may take. */
const COMPARED = 100_000
const COMPARED_FOR_MS = 200

/** What is different from the version before. */
function Changes({
  of: key,
  now,
  before,
  value,
}: {
  of: string
  now: Version | undefined
  before: Version | undefined
  value: StateValue
}) {
  const hasTwo = now?.type === 'state_written' && before?.type === 'state_written'
  const old = useLoaded<StateValue>(hasTwo ? query(statePath(key), { at: before.seq }) : undefined)
  const parts = useMemo(
    () => (old.data && !old.data.redacted ? compare(old.data.value, value.value) : undefined),
    [old.data, value],
  )
  if (!hasTwo || parts === undefined) return null
  return (
    <Panel title="What changed with it">
      {parts === 'much' ? (
        <p class="quiet">Too much to be compared here.</p>
      ) : (
        <pre
          tabIndex={0}
          role="region"
          aria-label="Differences from the version before"
          class="changes"
        >
          {parts.map((part, index) =>
            part.added ? (
              <ins key={index}>{visible(part.value)}</ins>
            ) : part.removed ? (
              <del key={index}>{visible(part.value)}</del>
            ) : (
              <span key={index}>{visible(part.value)}</span>
            ),
          )}
        </pre>
      )}
    </Panel>
  )
}

/** Undefined where they are the same. */
function compare(old: string, text: string): ReturnType<typeof diffLines> | 'much' | undefined {
  const [one, other] = [prettyJson(old) ?? old, prettyJson(text) ?? text]
  if (one === other) return undefined
  if (one.length + other.length > COMPARED) return 'much'
  const hasLines = one.includes('\n') || other.includes('\n')
  const within = { timeout: COMPARED_FOR_MS }
  return (
    (hasLines ? diffLines(one, other, within) : diffWordsWithSpace(one, other, within)) ?? 'much'
  )
}

function Value({ value }: { value: StateValue }) {
  const asText = useSignal(false)
  const parsed = useMemo(() => parseJson(value.value), [value.value])
  if (value.redacted)
    return (
      <p class="notice">
        What was here was removed by the operator of the infrastructure:{' '}
        <Strange text={value.reason ?? ''} /> <a href={link('transparency')}>Transparency log</a>
      </p>
    )
  return (
    <>
      <p class="quiet">
        {size(new TextEncoder().encode(value.value).length)}, written by{' '}
        <Address of={value.last_modified_by} />
        {value.last_modified_at && (
          <>
            , <Time at={value.last_modified_at} />
          </>
        )}
        {parsed !== undefined && (
          <>
            {' · '}
            <button type="button" class="plain" onClick={() => (asText.value = !asText.value)}>
              {asText.value ? 'as JSON' : 'as it was written'}
            </button>
          </>
        )}
      </p>
      {parsed !== undefined && !asText.value ? (
        <JsonTree value={parsed} label="Value" />
      ) : (
        <LongText key={value.key} text={value.value} label="Value" />
      )}
    </>
  )
}

/** Undefined of what is no JSON object or list. */
function parseJson(text: string): unknown {
  if (!/^\s*[[{]/.test(text)) return undefined
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function prettyJson(text: string): string | undefined {
  const parsed = parseJson(text)
  return parsed === undefined ? undefined : JSON.stringify(parsed, null, 2)
}

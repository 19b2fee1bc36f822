/** A JSON value as a tree whose branches fold. What is folded is not drawn. */
import { useSignal } from '@preact/signals'
import { count, counted, Strange } from './parts.tsx'

/** Branches at this depth and above are open to begin with. */
const OPEN_DEPTH = 2
/** Entries of a branch that are drawn at once. */
const SHOWN = 100
const SHOWN_CHARACTERS = 2_000

type Entry = readonly [name: string | undefined, value: unknown]

export function JsonTree({ value, label }: { value: unknown; label: string }) {
  return (
    <div class="json" tabIndex={0} role="region" aria-label={label}>
      <Branch name={undefined} value={value} depth={0} />
    </div>
  )
}

function Branch({
  name,
  value,
  depth,
}: {
  name: string | undefined
  value: unknown
  depth: number
}) {
  const isOpen = useSignal(depth < OPEN_DEPTH)
  const shown = useSignal(SHOWN)
  const entries = entriesOf(value)
  if (entries === undefined)
    return (
      <div class="leaf">
        <Name of={name} />
        <span class={typeof value}>
          <Strange text={JSON.stringify(value)} shown={SHOWN_CHARACTERS} />
        </span>
      </div>
    )
  const rest = entries.length - shown.value
  return (
    <details
      open={isOpen.value}
      onToggle={({ currentTarget }) => (isOpen.value = currentTarget.open)}
    >
      <summary>
        <Name of={name} />
        <span class="quiet">
          {Array.isArray(value)
            ? counted(entries.length, 'entry', 'entries')
            : counted(entries.length, 'field')}
        </span>
      </summary>
      {isOpen.value && (
        <ul>
          {entries.slice(0, shown.value).map(([key, inner], index) => (
            <li key={index}>
              <Branch name={key} value={inner} depth={depth + 1} />
            </li>
          ))}
          {rest > 0 && (
            <li>
              <button type="button" class="plain" onClick={() => (shown.value += SHOWN)}>
                {count(rest)} more
              </button>
            </li>
          )}
        </ul>
      )}
    </details>
  )
}

function Name({ of }: { of: string | undefined }) {
  if (of === undefined) return null
  return (
    <>
      <span class="json-name">
        <Strange text={of} shown={200} />
      </span>
      {': '}
    </>
  )
}

/** Undefined of what has none. */
function entriesOf(value: unknown): Entry[] | undefined {
  if (Array.isArray(value)) return value.map((inner) => [undefined, inner])
  return typeof value === 'object' && value !== null ? Object.entries(value) : undefined
}

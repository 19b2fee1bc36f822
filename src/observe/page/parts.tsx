/** What all views are made of. */
import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import type { Refused } from './api.ts'
import { change, link } from './route.ts'

const numbers = new Intl.NumberFormat()
const clock = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' })
const timeOfDay = new Intl.DateTimeFormat(undefined, { timeStyle: 'medium' })

export const count = (value: number) => numbers.format(value)
export const counted = (value: number, one: string, many = `${one}s`) =>
  `${count(value)} ${value === 1 ? one : many}`

const UNITS = ['bytes', 'KiB', 'MiB', 'GiB'] as const
export function size(bytes: number): string {
  const power = bytes < 1_024 ? 0 : Math.min(UNITS.length - 1, Math.floor(Math.log2(bytes) / 10))
  const unit = bytes === 1 ? 'byte' : UNITS[power]
  return `${numbers.format(power === 0 ? bytes : Number((bytes / 1_024 ** power).toFixed(1)))} ${unit}`
}

/**
 * In the reader's zone; in UTC where one points at it. Of today without the date, unless it is to
 * be whole.
 */
export function Time({ at, isWhole = false }: { at: string; isWhole?: boolean }) {
  const date = new Date(at)
  const isToday = !isWhole && date.toDateString() === new Date().toDateString()
  return (
    <time dateTime={at} title={`${at.replace('T', ' ').replace('Z', '')} UTC`}>
      {(isToday ? timeOfDay : clock).format(date)}
    </time>
  )
}

/** Text from strangers: apart from what is around it, whatever its direction. */
export function Strange({ text, shown = 300 }: { text: string; shown?: number }) {
  return (
    <bdi class="strange">{visible(text.length > shown ? `${text.slice(0, shown)}…` : text)}</bdi>
  )
}

/**
 * Characters that would not be seen, or would move what is around them, as signs of their own. Line
 * breaks and tabs stay.
 */
export function visible(text: string): string {
  return text.replace(INVISIBLE, (character) => {
    const code = character.codePointAt(0) ?? 0
    return code < 0x20
      ? String.fromCodePoint(0x2400 + code)
      : `⟨U+${code.toString(16).toUpperCase().padStart(4, '0')}⟩`
  })
}
const INVISIBLE = /[^\P{Cc}\n\t]|[\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu

/** On one line. */
const oneLine = (text: string) => text.replaceAll('\n', '␊').replaceAll('\t', '␉')

export const shortAddress = (address: string) =>
  address.length > 12 ? `${address.slice(0, 11)}…` : address

export function Address({ of }: { of: string | undefined }) {
  if (of === undefined) return <span>somebody</span>
  return (
    <a class="address" href={link('agents', { address: of })} title={of}>
      {shortAddress(of)}
    </a>
  )
}

export function Key({ of, shown = 120 }: { of: string; shown?: number }) {
  return (
    <a class="key" href={link('state', { key: of })}>
      <Strange text={of === '' ? '(empty key)' : oneLine(of)} shown={shown} />
    </a>
  )
}

/** A long text: its beginning, and the rest on demand. */
export function LongText({
  text,
  shown = 2_000,
  label,
}: {
  text: string
  shown?: number
  label: string
}) {
  const isOpen = useSignal(false)
  const isLong = text.length > shown
  return (
    <div class="long">
      {/* Scrolls, so it can be reached by keyboard. */}
      <pre tabIndex={0} role="region" aria-label={label}>
        <bdi>{visible(isLong && !isOpen.value ? `${text.slice(0, shown)}…` : text)}</bdi>
      </pre>
      {isLong && (
        <button type="button" onClick={() => (isOpen.value = !isOpen.value)}>
          {isOpen.value ? 'Show less' : `Show all ${count(text.length)} characters`}
        </button>
      )}
    </div>
  )
}

export function Panel({
  title,
  children,
  more,
}: {
  title: string
  children: ComponentChildren
  more?: ComponentChildren
}) {
  return (
    <section class="panel" aria-label={title}>
      <header>
        <h2>{title}</h2>
        {more}
      </header>
      {children}
    </section>
  )
}

/** Instead of something that is not there: in words. */
export function Waiting({
  refused,
  children,
}: {
  refused?: Refused | undefined
  children?: ComponentChildren
}) {
  return (
    <p class="quiet">
      {refused ? `The service says: ${refused.message}.` : (children ?? 'Loading…')}
    </p>
  )
}

/** A part of an address, which the link of the view keeps. */
export function AddressSearch({ label, value }: { label: string; value: string }) {
  return (
    <label class="field">
      {label}
      <input
        type="search"
        placeholder="tab_…"
        value={value}
        spellcheck={false}
        onInput={({ currentTarget }) =>
          change({ search: currentTarget.value.trim() || undefined, cursor: undefined })
        }
      />
    </label>
  )
}

export function Bar({ value, of }: { value: number; of: number }) {
  return <progress class="bar" value={value} max={Math.max(1, of)} aria-hidden="true" />
}

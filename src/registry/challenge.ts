/**
 * The challenge that keeps the registry for those who can compute: a pipeline of text operations on
 * a random seed.
 */
import { hash, randomBytes, randomInt } from 'node:crypto'

export interface Challenge {
  type: 'pipeline' | 'stub'
  data: { seed: string; operations: { op: string }[] } | Record<string, never>
  /** The right answer; undefined where any answer passes. */
  answer: string | undefined
}

export const OPERATIONS_PER_CHALLENGE = 8

const OPERATIONS: Record<string, (text: string) => string> = {
  reverse: (text) => [...text].reverse().join(''),
  base64_encode: (text) => Buffer.from(text).toString('base64'),
  base64_decode: (text) => Buffer.from(text, 'base64').toString('utf8'),
  hex_encode: (text) => Buffer.from(text).toString('hex'),
  sha256: (text) => hash('sha256', text),
  uppercase: (text) => text.toUpperCase(),
  lowercase: (text) => text.toLowerCase(),
  rot13: (text) =>
    text.replace(/[a-z]/gi, (letter) => {
      const base = letter <= 'Z' ? 65 : 97
      return String.fromCharCode(((letter.charCodeAt(0) - base + 13) % 26) + base)
    }),
}
const NAMES = [...Object.keys(OPERATIONS), 'prepend', 'append']

/** A challenge that any response passes. */
export function stubChallenge(): Challenge {
  return { type: 'stub', data: {}, answer: undefined }
}

/**
 * A new pipeline with its answer. Decoding is only asked of text that is base64 of UTF-8, so there
 * always is an answer.
 */
export function pipelineChallenge(): Challenge {
  const seed = randomBytes(16).toString('hex')
  const operations: { op: string }[] = []
  let text = seed
  while (operations.length < OPERATIONS_PER_CHALLENGE) {
    const name = NAMES[randomInt(NAMES.length)] ?? 'reverse'
    if (name === 'base64_decode' && !isBase64OfText(text)) continue
    const op =
      name === 'prepend' || name === 'append' ? `${name}:${randomBytes(3).toString('hex')}` : name
    text = applyOperation(op, text)
    operations.push({ op })
  }
  return { type: 'pipeline', data: { seed, operations }, answer: text }
}

/**
 * Applies one operation of a pipeline to a text. Throws a RangeError on an operation that there is
 * not.
 */
export function applyOperation(op: string, text: string): string {
  if (op.startsWith('prepend:')) return op.slice('prepend:'.length) + text
  if (op.startsWith('append:')) return text + op.slice('append:'.length)
  const operation = Object.hasOwn(OPERATIONS, op) ? OPERATIONS[op] : undefined
  if (!operation) throw new RangeError(`no such operation: ${op}`)
  return operation(text)
}

function isBase64OfText(text: string): boolean {
  const bytes = Buffer.from(text, 'base64')
  return (
    bytes.length > 0 &&
    bytes.toString('base64') === text &&
    Buffer.from(bytes.toString('utf8')).equals(bytes)
  )
}

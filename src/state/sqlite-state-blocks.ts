/**
 * Counting keys without counting them: the key space cut into ordered blocks of keys (level 1), and
 * those into blocks of blocks (level 2), each with its number of keys. A block begins at its first
 * key and ends where the next one begins.
 */
import type { Sqlite } from '../platform/sqlite.ts'
import { AFTER_ALL } from './key-order.ts'

/** A block with more is cut in two. */
const MAX_KEYS = 256
const MAX_BLOCKS = 128

type Sql = Sqlite['sql']

interface Block {
  first_key: Uint8Array
  keys: number
}

/**
 * Number of keys with `low <= key < high` (undefined: no end). Looks at the keys of two blocks and
 * the blocks of two blocks of blocks at most.
 */
export function countStateKeys(sql: Sql, low: Buffer, high: Buffer = AFTER_ALL): number {
  const keysBetween = (from: Uint8Array, to: Uint8Array) =>
    sql.get`select count(*) as keys from state where key >= ${from} and key < ${to}`?.keys as number
  const sumOf = (level: number, from: Uint8Array, to: Uint8Array) =>
    sql.get`
      select coalesce(sum(keys), 0) as keys from state_blocks
      where level = ${level} and first_key >= ${from} and first_key < ${to}`?.keys as number
  const first = (level: number, from: Uint8Array) =>
    sql.get`
      select first_key from state_blocks where level = ${level} and first_key >= ${from}
      order by first_key limit 1`?.first_key as Uint8Array | undefined
  const last = (level: number, to: Uint8Array) =>
    sql.get`
      select first_key from state_blocks where level = ${level} and first_key <= ${to}
      order by first_key desc limit 1`?.first_key as Uint8Array
  const isBefore = (one: Uint8Array | undefined, other: Uint8Array): one is Uint8Array =>
    one !== undefined && Buffer.compare(one, other) < 0

  const low1 = first(1, low)
  const high1 = last(1, high)
  if (!isBefore(low1, high1)) return keysBetween(low, high)
  const edges = keysBetween(low, low1) + keysBetween(high1, high)
  const low2 = first(2, low1)
  const high2 = last(2, high1)
  if (!isBefore(low2, high2)) return edges + sumOf(1, low1, high1)
  return edges + sumOf(1, low1, low2) + sumOf(2, low2, high2) + sumOf(1, high2, high1)
}

/** Keeps the blocks true after a key came (1) or went (-1). */
export function countStateChange(sql: Sql, key: Uint8Array, change: 1 | -1): void {
  const block = blockOf(sql, 1, key)
  // Looked up by the block, not by the key: every first key of level 2 is one of level 1.
  const parent = blockOf(sql, 2, block.first_key)
  for (const [level, { first_key }] of [block, parent].entries()) {
    sql.run`update state_blocks set keys = keys + ${change} where level = ${level + 1} and first_key = ${first_key}`
  }
  if (block.keys + change > MAX_KEYS) {
    splitBlock(sql, block.first_key)
    splitBlockOfBlocks(sql, parent.first_key)
  }
  if (block.keys + change === 0) removeEmpty(sql, block.first_key, parent)
}

function blockOf(sql: Sql, level: number, key: Uint8Array): Block {
  return sql.get`
    select first_key, keys from state_blocks where level = ${level} and first_key <= ${key}
    order by first_key desc limit 1` as unknown as Block
}

function endOf(sql: Sql, level: number, firstKey: Uint8Array): Uint8Array {
  const next = sql.get`
    select first_key from state_blocks where level = ${level} and first_key > ${firstKey} order by first_key limit 1`
  return (next?.first_key ?? AFTER_ALL) as Uint8Array
}

function splitBlock(sql: Sql, firstKey: Uint8Array): void {
  const end = endOf(sql, 1, firstKey)
  const middle = sql.get`
    select key from state where key >= ${firstKey} and key < ${end} order by key limit 1 offset ${MAX_KEYS / 2}`
  const moved = sql.get`select count(*) as keys from state where key >= ${middle?.key as Uint8Array} and key < ${end}`
  insertAfter(sql, 1, firstKey, middle?.key as Uint8Array, moved?.keys as number)
}

function splitBlockOfBlocks(sql: Sql, firstKey: Uint8Array): void {
  const end = endOf(sql, 2, firstKey)
  const blocks = sql.all`
    select first_key, keys from state_blocks where level = 1 and first_key >= ${firstKey} and first_key < ${end}
    order by first_key` as unknown as Block[]
  if (blocks.length <= MAX_BLOCKS) return
  const second = blocks.slice(MAX_BLOCKS / 2)
  const keys = second.reduce((sum, block) => sum + block.keys, 0)
  insertAfter(sql, 2, firstKey, second[0]?.first_key as Uint8Array, keys)
}

/** Takes the last `keys` of a block into a new one. */
function insertAfter(
  sql: Sql,
  level: number,
  block: Uint8Array,
  firstKey: Uint8Array,
  keys: number,
): void {
  sql.run`update state_blocks set keys = keys - ${keys} where level = ${level} and first_key = ${block}`
  sql.run`insert into state_blocks (level, first_key, keys) values (${level}, ${firstKey}, ${keys})`
}

/** The first block stays, as do those that begin a block of blocks that has keys. */
function removeEmpty(sql: Sql, firstKey: Uint8Array, parent: Block): void {
  sql.run`
    delete from state_blocks where level = 2 and first_key = ${parent.first_key} and keys = 0 and first_key <> x''`
  for (const empty of [firstKey, parent.first_key]) {
    sql.run`
      delete from state_blocks where level = 1 and first_key = ${empty} and keys = 0 and first_key <> x''
        and not exists (select 1 from state_blocks where level = 2 and first_key = ${empty})`
  }
}

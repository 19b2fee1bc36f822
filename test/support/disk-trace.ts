/**
 * What a process did to files, as strace saw it, and the files as a power failure at some moment
 * would have left them: what had been flushed by then, and of the rest what chance wills.
 */
import { readdir, readFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/**
 * Arguments of strace: it runs beside the process, which gets the signals, and writes a file for
 * each thread, with the contents of writes.
 */
export function straceArguments(prefix: string): string[] {
  const calls = 'pwrite64,fdatasync,fsync,ftruncate,unlink,unlinkat'
  return [
    '-D',
    '-ff',
    '-ttt',
    '-T',
    '-y',
    '-s',
    '33554432',
    '-xx',
    '--seccomp-bpf',
    '-e',
    `trace=${calls}`,
    '-o',
    prefix,
  ]
}

type Operation = { readonly path: string; readonly begun: number; readonly ended: number } & (
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Buffer }
  | { readonly kind: 'truncate'; readonly length: number }
  | { readonly kind: 'remove' | 'flush' }
)

const LINE = /^(\d+\.\d+) (\w+)\((.*)\)\s+= (-?\d+).*<(\d+\.\d+)>$/s
/** The first argument: a path in quotes, or a file that is open with its path. */
const TARGET = /^(?:AT_FDCWD(?:<[^>]*>)?, )?(?:"([^"]*)"|\d+<([^>]*)>)(.*)$/s
/** A disk writes so much whole or not at all. */
const SECTOR = 512

/**
 * What the process `pid` did to a directory and what is in it, in order, once it has ended. Times
 * in ms since 1970; the directory's own path is empty.
 */
export async function readTrace(
  prefix: string,
  pid: number,
  directory: string,
): Promise<Operation[]> {
  // strace writes a little later.
  for (const main = `${prefix}.${pid}`; !(await readFile(main, 'latin1')).includes('+++ exited'); )
    await sleep(20)
  const files = (await readdir(dirname(prefix))).filter((file) =>
    file.startsWith(`${basename(prefix)}.`),
  )
  const operations: Operation[] = []
  for (const file of files) {
    for (const line of (await readFile(join(dirname(prefix), file), 'latin1')).split('\n')) {
      const operation = toOperation(line, directory)
      if (operation) operations.push(operation)
    }
  }
  return operations.sort((one, other) => one.begun - other.begun)
}

function toOperation(line: string, directory: string): Operation | undefined {
  const [, time, call, input = '', result, duration] = LINE.exec(line) ?? []
  const [, quoted, ofOpen, rest = ''] = TARGET.exec(input) ?? []
  const path = unescaped(quoted ?? ofOpen ?? '').toString()
  if (!path.startsWith(directory) || Number(result) < 0) return undefined
  const begun = Number(time) * 1_000
  const what = {
    path: path.slice(directory.length + 1),
    begun,
    ended: begun + Number(duration) * 1_000,
  }
  if (call === 'pwrite64') {
    const [, text = '', offset] = /^, "((?:\\x[0-9a-f]{2})*)", \d+, (\d+)$/.exec(rest) ?? []
    if (offset === undefined) throw new Error(`not understood: ${line.slice(0, 200)}`)
    return {
      ...what,
      kind: 'write',
      offset: Number(offset),
      bytes: unescaped(text).subarray(0, Number(result)),
    }
  }
  if (call === 'ftruncate') return { ...what, kind: 'truncate', length: Number(rest.slice(2)) }
  return { ...what, kind: call?.startsWith('unlink') ? 'remove' : 'flush' }
}

/** Of `\x2f…`, or of text as it is. */
function unescaped(text: string): Buffer {
  return text.startsWith('\\x') ? Buffer.from(text.replaceAll('\\x', ''), 'hex') : Buffer.from(text)
}

/**
 * The files as the disk may have them after a power failure at `moment`: each sector that was not
 * flushed is there or not, and so is each file whose removal was not.
 */
export function filesAfterPowerFailure(
  operations: readonly Operation[],
  moment: number,
  random: () => number,
): Map<string, Buffer> {
  const begun = Map.groupBy(
    operations.filter((operation) => operation.begun <= moment),
    ({ path }) => path,
  )
  const files = new Map<string, Buffer>()
  const ofDirectory = flushedAt(begun.get('') ?? [], moment)
  for (const [path, ours] of begun) {
    if (path === '') continue
    const ofContent = flushedAt(ours, moment)
    const end = Math.max(
      ...ours.map((operation) => (operation.kind === 'write' ? endOf(operation) : 0)),
    )
    const space = Buffer.alloc(end)
    /** Undefined where there is no file. */
    let length: number | undefined
    for (const operation of ours) {
      const happens = () =>
        operation.ended <= (operation.kind === 'remove' ? ofDirectory : ofContent) || random() < 0.5
      if (operation.kind === 'write') {
        for (let from = 0; from < operation.bytes.length; from += SECTOR) {
          if (!happens()) continue
          const sector = operation.bytes.subarray(from, from + SECTOR)
          sector.copy(space, operation.offset + from)
          length = Math.max(length ?? 0, operation.offset + from + sector.length)
        }
      } else if (operation.kind === 'truncate' && happens()) {
        space.fill(0, operation.length)
        length = operation.length
      } else if (operation.kind === 'remove' && happens()) {
        space.fill(0)
        length = undefined
      }
    }
    if (length !== undefined) files.set(path, space.subarray(0, length))
  }
  return files
}

/** When the last flush began that was over at `moment`: what was done before is on the disk. */
function flushedAt(operations: readonly Operation[], moment: number): number {
  const last = operations.findLast(({ kind, ended }) => kind === 'flush' && ended <= moment)
  return last?.begun ?? Number.NEGATIVE_INFINITY
}

function endOf({ offset, bytes }: { offset: number; bytes: Buffer }): number {
  return offset + bytes.length
}

/**
 * The functions of Postgres: a file each, `<capability>/sql/<function>.sql`, beside the code that
 * calls them. `migrate` brings them into the database, and a node serves only from those that are
 * its own.
 */
import { createHash } from 'node:crypto'
import { glob, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { sql } from 'kysely'
import type { Database, DatabaseTransaction } from './database.ts'

interface FunctionFile {
  name: string
  /** Below the directory that it was looked for in. */
  path: string
  text: string
  hash: string
}

/** One of the functions of a name in the database: they differ in what they take. */
interface Routine {
  id: string
  /** Its name and the types that it takes, as in a statement. */
  signature: string
  /** Who may call it, beside its owner. */
  grantees: string[]
}

export interface FunctionChanges {
  installed: string[]
  dropped: string[]
}

/** Another type of the result, or other names of the parameters, are not replaced. */
const INVALID_FUNCTION_DEFINITION = '42P13'

/**
 * Makes the functions in the database those in the files below `directory`: replaces those whose
 * text is another than was installed last, and drops those without a file. Who may call one may
 * still when it is replaced.
 */
export async function installFunctions(
  transaction: DatabaseTransaction,
  directory: string,
): Promise<FunctionChanges> {
  const files = await readFunctions(directory)
  const names = new Set(files.map(({ name }) => name))
  const { rows } = await sql<{
    name: string
  }>`select name from installed_functions order by name`.execute(transaction)
  const dropped = rows.map(({ name }) => name).filter((name) => !names.has(name))
  for (const name of dropped) {
    for (const routine of await routinesNamed(transaction, name)) await drop(transaction, routine)
    await sql`delete from installed_functions where name = ${name}`.execute(transaction)
  }
  const others = await differing(transaction, files)
  for (const file of others) {
    await install(transaction, file)
    await sql`
      insert into installed_functions (name, hash) values (${file.name}, ${file.hash})
      on conflict (name) do update set hash = excluded.hash`.execute(transaction)
  }
  return { installed: others.map(({ name }) => name), dropped }
}

/**
 * The names of the functions in the files below `directory` that the database lacks, or has with
 * another text.
 */
export async function foreignFunctions(database: Database, directory: string): Promise<string[]> {
  const others = await differing(database, await readFunctions(directory))
  return others.map(({ name }) => name)
}

async function readFunctions(directory: string): Promise<FunctionFile[]> {
  const files = new Map<string, FunctionFile>()
  for (const path of (await Array.fromAsync(glob('*/sql/*.sql', { cwd: directory }))).sort()) {
    const name = basename(path, '.sql')
    const same = files.get(name)
    if (same) throw new Error(`${path}: ${same.path} has the same name`)
    const text = await readFile(join(directory, path), 'utf8')
    files.set(name, { name, path, text, hash: createHash('sha256').update(text).digest('hex') })
  }
  return [...files.values()].sort((one, other) => (one.name < other.name ? -1 : 1))
}

async function differing(
  database: Database,
  files: readonly FunctionFile[],
): Promise<FunctionFile[]> {
  const { rows } = await sql<{ name: string; hash: string }>`
    select name, hash from installed_functions
    where exists (select from pg_proc where proname = name and pronamespace = ${HERE})`.execute(
    database,
  )
  const installed = new Map(rows.map(({ name, hash }) => [name, hash]))
  return files.filter(({ name, hash }) => installed.get(name) !== hash)
}

const HERE = sql`(select oid from pg_namespace where nspname = current_schema())`

async function install(
  transaction: DatabaseTransaction,
  { name, path, text }: FunctionFile,
): Promise<void> {
  const before = await routinesNamed(transaction, name)
  try {
    await create(transaction, text, before)
  } catch (error) {
    throw new Error(`${path}: ${error instanceof Error ? error.message : error}`, { cause: error })
  }
  const after = await routinesNamed(transaction, name)
  const wasThere = ({ id }: Routine) => before.some((routine) => routine.id === id)
  const made = after.filter((routine) => !wasThere(routine))
  if (after.length === 0) throw new Error(`${path}: it makes no function ${name}`)
  if (made.length === 0) return
  for (const routine of after.filter(wasThere)) await drop(transaction, routine)
  const grantees = new Set(before.flatMap((routine) => routine.grantees))
  for (const { signature } of made) {
    for (const grantee of grantees)
      await sql.raw(`grant execute on routine ${signature} to ${grantee}`).execute(transaction)
  }
}

/** In place where that can be: who calls it meanwhile does not notice. */
async function create(
  transaction: DatabaseTransaction,
  text: string,
  before: readonly Routine[],
): Promise<void> {
  await sql`savepoint in_place`.execute(transaction)
  try {
    await sql.raw(text).execute(transaction)
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code !== INVALID_FUNCTION_DEFINITION || before.length === 0) throw error
    await sql`rollback to savepoint in_place`.execute(transaction)
    for (const routine of before) await drop(transaction, routine)
    await sql.raw(text).execute(transaction)
  }
}

async function drop(transaction: DatabaseTransaction, { signature }: Routine): Promise<void> {
  await sql.raw(`drop routine ${signature}`).execute(transaction)
}

async function routinesNamed(transaction: DatabaseTransaction, name: string): Promise<Routine[]> {
  const { rows } = await sql<Routine>`
    select oid::text as id, oid::regprocedure::text as signature, (
      select coalesce(json_agg(case grantee when 0 then 'public' else grantee::regrole::text end), '[]')
      from aclexplode(proacl) where privilege_type = 'EXECUTE' and grantee <> proowner
    ) as grantees
    from pg_proc where proname = ${name} and pronamespace = ${HERE}`.execute(transaction)
  return rows
}

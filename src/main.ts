/** The command line: one command per role, and the operator's commands. */
import { parseArgs } from 'node:util'
import { type Config, ConfigError, loadConfig, unknownSettings } from './config.ts'
import { endAtSignals } from './platform/shutdown.ts'

interface Command {
  summary: string
  help: string
  /** Runs until it is told to stop: an error that nobody heard does not end it. */
  runsForLong?: boolean
  /** Needs just one of the cluster's servers. */
  partOfCluster?: boolean
  /** Options that it takes, each there or not. */
  flags?: readonly string[]
  /** Options that it takes, each with a value. */
  options?: readonly string[]
  run: (config: Config, args: string[], flags: Flags, options: Options) => Promise<void>
}

type Flags = Readonly<Record<string, boolean | undefined>>
type Options = Readonly<Record<string, string | undefined>>

const COMMANDS: Record<string, Command> = {
  serve: {
    summary: 'run everything in one process on embedded storage',
    help: `Usage: serve

Serves the agent API from one process. Needs no server; data is kept in DATA_DIR (./data).
Settings: PORT (8080), HOST (0.0.0.0), INTERNAL_PORT (9090), DATA_DIR (./data); all are in docs/settings.md.`,
    runsForLong: true,
    run: async (config) => (await import('./commands/serve.ts')).serve(config),
  },
  api: {
    summary: 'run an API node of a cluster',
    help: `Usage: api

Serves the agent API from a cluster's storage. Any number of nodes, behind any HTTP load balancer.
Needs DATABASE_URL, REDIS_URL and NATS_URL; PORT (8080) for agents, INTERNAL_PORT (9090) for /livez, /readyz and /metrics.`,
    runsForLong: true,
    run: async (config) => (await import('./commands/api.ts')).api(config),
  },
  worker: {
    summary: 'run a worker of a cluster',
    help: `Usage: worker

Applies the event log to Postgres and Redis, and pushes messages to webhooks. Any number; they share the work.
Needs DATABASE_URL, REDIS_URL and NATS_URL; INTERNAL_PORT (9090) for /livez, /readyz and /metrics.`,
    runsForLong: true,
    run: async (config) => (await import('./commands/worker.ts')).worker(config),
  },
  migrate: {
    summary: "bring a cluster's database schema up to date",
    help: `Usage: migrate

Applies the steps in migrations/postgres/ that the database lacks, each once, and installs the functions in src/*/sql/
that are not this version's: all in one transaction, under a lock, so that it is safe to start on several machines.
Needs DATABASE_URL of the role that owns the schema.`,
    partOfCluster: true,
    run: async (config) => (await import('./commands/migrate.ts')).migrate(config),
  },
  observe: {
    summary: 'run the observation service',
    help: `Usage: observe [--rebuild]

Serves the public, read-only observation API from the event log and read models of its own. Any number; one of them keeps the read models.
In a cluster needs DATABASE_URL (of the role that owns the schema observation) and NATS_URL (of the user observer), and no more; without them
it reads the embedded storage in DATA_DIR. OBSERVE_PORT (8090) for whoever watches, INTERNAL_PORT (9090) for /livez, /readyz and /metrics.
Serve runs it by itself.

With --rebuild it serves nothing: it builds the read models from nothing while others serve the old ones, which are then replaced, and ends.`,
    flags: ['rebuild'],
    runsForLong: true,
    partOfCluster: true,
    run: async (config, _, { rebuild = false }) =>
      (await import('./commands/observe.ts')).observe(config, { isRebuild: rebuild }),
  },
  verify: {
    summary: 'compare state, registry and queues with the event log',
    help: `Usage: verify

Replays the event log and prints each difference from what the API reads. Exits 0 if there is none, 1 otherwise.
Works while the kernel runs. Without DATABASE_URL and the others it looks at the embedded storage in DATA_DIR.`,
    run: async (config) => (await import('./commands/verify.ts')).verify(config),
  },
  maintain: {
    summary: 'do the work of maintenance now',
    help: `Usage: maintain [job…]

Removes what is needed no more, which api nodes and workers do by themselves: all of it, or the jobs that are named. Says what each did.
Exits 1 if one failed. A wrong name gives the right ones. On embedded storage (DATA_DIR) whether or not a kernel runs.`,
    run: async (config, names) => (await import('./commands/maintain.ts')).maintain(config, names),
  },
  revoke: {
    summary: 'revoke the token of an agent or operator',
    help: `Usage: revoke <address or operator id>

The token is refused from now on, on every node; while Redis is out, within SESSION_TTL (30s).
On embedded storage (DATA_DIR) within a second, whether or not a kernel runs.`,
    run: async (config, [identity]) =>
      (await import('./commands/revoke.ts')).revoke(config, identity),
  },
  remove: {
    summary: 'remove content that is illegal to host',
    help: `Usage: remove state --key <key> --reason <reason> [--by <name>] [--erase] [--yes] [--dry-run]
       remove message --id <message id> --reason <reason> [--by <name>] [--erase] [--yes] [--dry-run]
       remove list

For the operator of the infrastructure, and for nothing but what the law demands. Of a key: it is deleted, and agents get 404. Of a message: if it was
not fetched yet, it arrives with a redaction instead of its content. In all observation, what was and what is, the redaction is shown. The
transparency log, which is public, tells of it for ever: what, when, why (--reason), by whom (--by, operator), and the SHA-256 of the content.
A key that cannot be typed is given percent-encoded, as in the API's paths: --encoded-key <key>.
--erase erases the original too, from the log and all stores; in a cluster it needs NATS_ADMIN_URL. It says what is left to do by hand. Begun, and ended
by whatever, it goes on when it is done again; so it is of use for what was removed before.
--dry-run says what would be done, and changes nothing. Without --yes it asks first. The list is what was removed, the oldest first.
Works while everything runs: on a cluster, or on the embedded storage in DATA_DIR.`,
    flags: ['erase', 'yes', 'dry-run'],
    options: ['key', 'encoded-key', 'id', 'reason', 'by'],
    run: async (config, args, flags, options) =>
      (await import('./commands/remove.ts')).remove(config, args, flags, options),
  },
  tail: {
    summary: 'print the event log as it happens',
    help: `Usage: tail [since] [--json]

Prints each event after the sequence number \`since\` (0), one a line, and waits for more. With --json each line is the event as JSON.
Without NATS_URL and the others it reads the embedded storage in DATA_DIR, whether or not a kernel runs.`,
    flags: ['json'],
    run: async (config, [since], { json = false }) =>
      (await import('./commands/tail.ts')).tail(config, { since, json }),
  },
  'event-schema': {
    summary: 'print the format of the event log as JSON Schema',
    help: `Usage: event-schema

Prints the JSON Schema of an event as it is in JetStream: a line of a message of the stream EVENTS.`,
    partOfCluster: true,
    run: async () => (await import('./commands/event-schema.ts')).printEventSchema(),
  },
  backup: {
    summary: 'copy the embedded database while the kernel runs',
    help: `Usage: backup <file or directory>

Copies the database in DATA_DIR as it is at one moment. To restore it, stop the kernel, put the copy into an empty DATA_DIR
as tabulum.db, and start the kernel.`,
    run: async (config, [target]) => (await import('./commands/backup.ts')).backup(config, target),
  },
}

const USAGE = `Usage: node src/main.ts <command> [--help]

Commands:
${Object.entries(COMMANDS)
  .map(([name, { summary }]) => `  ${name.padEnd(12)} ${summary}`)
  .join('\n')}

Settings are environment variables; docs/settings.md lists them.`

/** Errors whose message is all that the person who started the program needs. */
const EXPECTED = new Set([
  'ConfigError',
  'DirectoryInUse',
  'CannotListen',
  'UsageError',
  'StartupError',
])

async function main(args: string[]): Promise<void> {
  const [name, ...rest] = args
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    console.log(USAGE)
    return
  }
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined
  if (!command) {
    console.error(`There is no command ${JSON.stringify(name)}.\n\n${USAGE}`)
    process.exitCode = 2
    return
  }
  const { values, positionals } = parseArgs({
    args: rest,
    options: {
      help: { type: 'boolean', short: 'h' },
      ...Object.fromEntries(
        (command.flags ?? []).map((flag) => [flag, { type: 'boolean' as const }]),
      ),
      ...Object.fromEntries(
        (command.options ?? []).map((option) => [option, { type: 'string' as const }]),
      ),
    },
    allowPositionals: true,
  })
  if (values.help) {
    console.log(command.help)
    return
  }
  for (const { name, nearest } of unknownSettings(process.env)) {
    console.error(`${name} is not a setting, and changes nothing: is ${nearest} meant?`)
  }
  const config = loadConfig(process.env, { partOfCluster: command.partOfCluster ?? false })
  if (command.runsForLong) {
    const [{ hearProcessErrors }, { createLogger }] = await Promise.all([
      import('./platform/background.ts'),
      import('./platform/logger.ts'),
    ])
    hearProcessErrors(createLogger(config.LOG_LEVEL, name))
  }
  await command.run(config, positionals, values as Flags, values as Options)
}

endAtSignals()
try {
  await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof Error)) throw error
  const known =
    EXPECTED.has(error.name) ||
    error instanceof ConfigError ||
    ('code' in error && String(error.code).startsWith('ERR_PARSE_ARGS'))
  console.error(known ? error.message : error)
  // Open handles (threads, connections) must not keep a program that could not start.
  process.exit(known ? 2 : 1)
}

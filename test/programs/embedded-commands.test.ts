/** The operator's commands on embedded storage: beside a kernel that runs, and without one. */
import { execFileSync } from 'node:child_process'
import { chmod, copyFile, cp, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { describe, expect, it } from 'vitest'
import { type Agent, Client } from '../../lab/client.ts'
import { freshDataDirectory, type Kernel, startKernel } from '../../lab/kernel.ts'
import { verifySqlite } from '../../src/maintenance/verify-sqlite.ts'
import { openSqlite } from '../../src/platform/sqlite.ts'
import { readModels } from '../../src/storage/read-models.ts'
import { runCommand, startCommand } from '../support/command.ts'

const UNLIMITED = {
  RATE_LIMIT_MESSAGE_PER_MIN: '1000000',
  RATE_LIMIT_STATE_READ_PER_MIN: '1000000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '1000000',
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '1000000',
}
const WAIT = { timeout: 60_000, interval: 50 }
const NOTHING_WRONG =
  /^(Compared the observation, \d+ events, up to \d+\.|There is no observation of this version to compare\.)\nCompared \d+ events, up to \d+: no differences\.\n$/
const database = (dataDir: string) => join(dataDir, 'tabulum.db')

/** Agents that write and send until they are told to stop; then says what was acknowledged last. */
function load(agents: readonly Agent[]) {
  let isOver = false
  const written = new Map<string, string>()
  const working = agents.map(async (agent, index) => {
    for (let round = 0; !isOver; round++) {
      const key = `load/${index}/${round % 10}`
      await agent.write(key, `${round}`)
      written.set(key, `${round}`)
      await agent.send(agents[(index + 1) % agents.length]?.address ?? '', `${round}`)
    }
  })
  return async () => {
    isOver = true
    await Promise.all(working)
    return written
  }
}

async function started(
  dataDir?: string,
): Promise<{ kernel: Kernel; client: Client; agents: Agent[] }> {
  const kernel = await startKernel(UNLIMITED, dataDir === undefined ? {} : { dataDir })
  const client = new Client(kernel.baseUrl)
  return { kernel, client, agents: await client.registerAgents(3) }
}

/** One sentence, for who typed the command. */
function expectRefusal(
  ended: { code: number | null; out: string; err: string },
  message: string | RegExp,
): void {
  expect({ code: ended.code, out: ended.out }, ended.err).toEqual({ code: 2, out: '' })
  expect(ended.err).toMatch(message)
  expect(ended.err.trim().split('\n')).toHaveLength(1)
}

describe('backup', () => {
  it('beside a kernel under load: the copy, restored, has all that was there, and serves', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [reader, sender, recipient] = agents as [Agent, Agent, Agent]
    await sender.write('kept', 'as it was')
    const { message_id } = await sender.send(recipient.address, 'waits')
    const stop = load([reader, sender])
    const target = await freshDataDirectory()
    const named = await runCommand(kernel.dataDir, 'backup', join(target, 'copy.db'))
    expect(named, named.err).toMatchObject({ code: 0, err: '' })
    const before = await readdir(target)
    const timed = await runCommand(kernel.dataDir, 'backup', target)
    expect(timed, timed.err).toMatchObject({ code: 0, err: '' })
    const written = await stop()
    expect(written.size).toBeGreaterThan(0)
    const files = await readdir(target)
    expect(files).toHaveLength(2)
    const [second = ''] = files.filter((file) => !before.includes(file))
    expect(second).toMatch(/^tabulum-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.db$/)

    for (const file of ['copy.db', second]) {
      // Nobody else may read what tokens are checked with.
      expect((await stat(join(target, file))).mode & 0o077).toBe(0)
      const restored = await freshDataDirectory()
      await copyFile(join(target, file), database(restored))
      await using again = await startKernel(UNLIMITED, { dataDir: restored })
      const verified = await runCommand(restored, 'verify')
      expect(verified.out + verified.err).toMatch(NOTHING_WRONG)
      const get = (agent: Agent, path: string) =>
        new Client(again.baseUrl).request('GET', path, { token: agent.token })
      for (const agent of agents) expect((await get(agent, '/v1/agents/me')).status).toBe(200)
      expect((await get(reader, '/v1/state/kept')).json).toMatchObject({ value: 'as it was' })
      const received = await get(recipient, '/v1/messages')
      expect(received.json).toMatchObject({ messages: [{ message_id, content: 'waits' }] })
      expect(await again.stop()).toBe(0)
    }
    expect((await readdir(target)).toSorted()).toEqual(files.toSorted())
  })

  it('says what is wrong, and leaves nothing', async () => {
    const { kernel } = await started()
    await using _ = kernel
    const target = await freshDataDirectory()
    const taken = join(target, 'taken')
    await writeFile(taken, 'mine')
    expectRefusal(await runCommand(kernel.dataDir, 'backup', taken), `${taken} is there already`)
    expect(await readFile(taken, 'utf8')).toBe('mine')
    expectRefusal(
      await runCommand(kernel.dataDir, 'backup', join(target, 'no', 'copy.db')),
      'no copy was made',
    )
    expectRefusal(await runCommand(kernel.dataDir, 'backup', '/dev/full/x'), 'no copy was made')
    expectRefusal(
      await runCommand(kernel.dataDir, 'backup'),
      'backup takes the file, or the directory',
    )
    const empty = await freshDataDirectory()
    expectRefusal(await runCommand(empty, 'backup', target), `there is no database in ${empty}`)
    expect(await readdir(empty)).toEqual([])
    expect(await readdir(target)).toEqual(['taken'])
  })

  it('leaves nothing where the disk is full', async () => {
    const { kernel } = await started()
    await using _ = kernel
    const target = await freshDataDirectory()
    const command = startCommand(kernel.dataDir, ['backup', join(target, 'copy.db')])
    execFileSync('prlimit', ['--pid', String(command.child.pid), '--fsize=16384:unlimited'])
    expectRefusal(await command.ended, 'no copy was made')
    expect(await readdir(target)).toEqual([])
  })
})

describe('verify', () => {
  it('finds nothing beside a kernel under load, and nothing without one', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const stop = load(agents)
    for (let run = 0; run < 3; run++) {
      const { code, out, err } = await runCommand(kernel.dataDir, 'verify')
      expect(out + err).toMatch(NOTHING_WRONG)
      expect(code).toBe(0)
    }
    await stop()
    expect(await kernel.stop()).toBe(0)
    // All is in the one file then, and what is built from its log in another.
    expect((await readdir(kernel.dataDir)).toSorted()).toEqual([
      'lock',
      'observation-1.db',
      'tabulum.db',
    ])
    const { code, out } = await runCommand(kernel.dataDir, 'verify')
    expect({ code, out }).toEqual({ code: 0, out: expect.stringMatching(NOTHING_WRONG) })
  })

  it('tells each difference, and exits with 1', { timeout: 600_000 }, async () => {
    const dataDir = await freshDataDirectory()
    {
      await using kernel = await startKernel(
        { ...UNLIMITED, WEBHOOK_ALLOW_CIDRS: '127.0.0.0/8' },
        { dataDir },
      )
      const client = new Client(kernel.baseUrl)
      const [one, two, three] = (await client.registerAgents(3)) as [Agent, Agent, Agent]
      const pushed = await client.registerAgent({ webhookUrl: 'https://127.0.0.1:9/' })
      await one.write('a', '1')
      await one.write('b', '2')
      await one.send(two.address, 'x')
      await one.send(three.address, 'y')
      await one.send(pushed.address, 'z')
      expect(await kernel.stop()).toBe(0)
    }
    const clean = await runCommand(dataDir, 'verify')
    expect(clean.out).toMatch(NOTHING_WRONG)
    const pull = 'select seq from queued_messages where via_webhook = 0 order by seq limit 1'
    for (const [change, told] of [
      [
        `update state set value = x'33' where key = x'61'`,
        'state: key a has another value than the log',
      ],
      [
        `update state set modified_by = 'tab_x' where key = x'61'`,
        'state: key a has another value than the log',
      ],
      [
        `update state set seq = seq + 1000 where key = x'61'`,
        'state: key a has another sequence number than in the log',
      ],
      [`delete from state where key = x'61'`, 'state: key a is missing'],
      ['update state_usage set used_bytes = used_bytes + 1', 'capacity: used_bytes is 5'],
      ['update state_usage set key_count = 9', 'capacity: key_count is 9, there are 2'],
      [
        'update state_blocks set keys = keys + 1 where level = 1',
        'state: a block of level 1 counts 3 keys, there are 2',
      ],
      [
        'update state_blocks set keys = keys + 1 where level = 2',
        'state: a block of level 2 counts 3 keys, there are 2',
      ],
      ['update registry_totals set agents = 7', 'registry: total is 7, there are 4'],
      [
        'delete from agents where seq = (select min(seq) from agents)',
        'is in the log but not active',
      ],
      [
        'update agents set seq = seq + 1000 where seq = (select max(seq) from agents)',
        'has another sequence number',
      ],
      [
        `update agents set operator_id = 'x' where seq = (select max(seq) from agents)`,
        'has another sequence number or operator',
      ],
      ['delete from operators', 'is in the log but not active'],
      ['update queues set length = length + 1', 'has length 2, there are 1'],
      ['delete from queues', 'has length 0, there are 1'],
      [`delete from queued_messages where seq = (${pull})`, 'are missing, of which 0 were dropped'],
      [`update queued_messages set message_id = 'x' where seq = (${pull})`, 'message x to tab_'],
      [
        `update queued_messages set recipient = 'tab_x' where seq = (${pull})`,
        'has another sequence number or recipient',
      ],
      [
        `update queued_messages set seq = seq + 1000 where seq = (${pull})`,
        'has another sequence number or recipient',
      ],
      [
        `update queued_messages set via_webhook = 1 where seq = (${pull})`,
        'is to be pushed, but the log says',
      ],
      [
        'update queued_messages set via_webhook = 0 where via_webhook = 1',
        'is in the pull queue, but the log says',
      ],
      ['update webhook_lanes set pending = 3', 'counts 3, there are 1'],
      ['delete from webhook_lanes', 'counts 0, there are 1'],
      ['update webhook_lanes set next_at = null', 'waits in a lane that has been worked off'],
      ['update webhook_totals set pending = 5', 'webhooks: the total is 5, there are 1'],
    ] as const) {
      const changed = await freshDataDirectory()
      await cp(dataDir, changed, { recursive: true })
      const sqlite = new DatabaseSync(database(changed))
      expect(Number(sqlite.prepare(change).run().changes), change).toBeGreaterThan(0)
      sqlite.close()
      // What the command says and ends with is looked at once: to start it for each takes most of a
      // second.
      if (change === 'delete from operators') {
        const { code, out, err } = await runCommand(changed, 'verify')
        expect({ code, err }, change).toEqual({ code: 1, err: '' })
        expect(out, change).toContain(told)
        expect(out, change).toMatch(/\d+ differences\.\n$/)
      } else expect(differencesIn(database(changed)).join('\n'), change).toContain(told)
    }
  })
})

/** What `verify` compares and tells, in this process. */
function differencesIn(file: string): string[] {
  const sqlite = openSqlite(file, { readOnly: true })
  const differences: string[] = []
  try {
    verifySqlite(sqlite, readModels({ maxQueue: 10_000 }), (difference) =>
      differences.push(difference),
    )
  } finally {
    sqlite.connection.close()
  }
  return differences
}

describe('tail', () => {
  it('without --json prints a line for people, in which nothing steers the terminal', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one] = agents as [Agent]
    await one.write('\u009b2J\u202e key', 'x'.repeat(1_000))
    const tail = startCommand(kernel.dataDir, ['tail'])
    const line = await tail.printed((out) => /^.*state_written.*$/m.exec(out)?.[0])
    expect(line).toMatch(
      /^20\d\d-\S+Z \d+ state_written {5}tab_\S+ \{"key":"\\u009b2J\\u202e key","value":"x+…$/,
    )
    tail.child.kill('SIGTERM')
    await tail.ended
  })

  it('prints what is there and then what comes, beside a kernel; ends with its reader', async () => {
    const { kernel, agents } = await started()
    await using _ = kernel
    const [one] = agents as [Agent]
    await one.write('before', '1')
    const tail = startCommand(kernel.dataDir, ['tail', '--json'])
    const last = await tail.printed((out) => /^\{"seq":(\d+).*"key":"before"/m.exec(out)?.[1])
    await one.write('after', '2')
    await tail.printed((out) => /"key":"after"/.exec(out)?.[0])
    const later = startCommand(kernel.dataDir, ['tail', last, '--json'])
    const first = await later.printed((out) =>
      out.includes('\n') ? out.slice(0, out.indexOf('\n')) : undefined,
    )
    expect(JSON.parse(first)).toMatchObject({ seq: Number(last) + 1, data: { key: 'after' } })
    expect(await kernel.events()).toHaveLength(Number(last) + 1)
    // As `tail | head` does.
    tail.child.stdout.destroy()
    await one.write('for nobody', '3')
    const { code, err } = await tail.ended
    expect({ code, err }).toEqual({ code: 0, err: '' })
    later.child.kill('SIGTERM')
    expect((await later.ended).code).toBe(143)
  })

  it('says what is wrong', async () => {
    const empty = await freshDataDirectory()
    for (const since of ['x', '1.5', '', '1e3', '9'.repeat(16)]) {
      expectRefusal(
        await runCommand(empty, 'tail', since),
        'tail takes the sequence number of the event to begin after',
      )
    }
    expectRefusal(await runCommand(empty, 'tail'), `there is no database in ${empty}`)
  })
})

describe('revoke', () => {
  it('beside a kernel: sessions of that token end within seconds, others go on', async () => {
    const { kernel, client } = await started()
    await using _ = kernel
    const operator = await client.registerOperator()
    const other = await client.registerOperator()
    const [one, two] = await Promise.all([operator.registerAgent(), operator.registerAgent()])
    const status = async (who: { token: string }, path: string) =>
      (await client.request('GET', path, { token: who.token })).status
    const challenge = '/v1/agents/verification-challenge'
    expect(await status(one, '/v1/agents/me')).toBe(200)
    expect(await status(two, '/v1/agents/me')).toBe(200)
    expect(await status(operator, challenge)).toBe(200)

    const revoked = await runCommand(kernel.dataDir, 'revoke', one.address)
    expect(revoked).toMatchObject({ code: 0, err: '' })
    await expect
      .poll(() => status(one, '/v1/agents/me'), { timeout: 5_000, interval: 50 })
      .toBe(401)
    expect(await status(two, '/v1/agents/me')).toBe(200)
    expect(await status(operator, challenge)).toBe(200)

    expect(await runCommand(kernel.dataDir, 'revoke', operator.id)).toMatchObject({
      code: 0,
      err: '',
    })
    await expect.poll(() => status(operator, challenge), { timeout: 5_000, interval: 50 }).toBe(401)
    expect(await status(other, challenge)).toBe(200)
    expect(await status(two, '/v1/agents/me')).toBe(200)

    // Again is no mistake; nobody is one.
    expect((await runCommand(kernel.dataDir, 'revoke', one.address)).code).toBe(0)
    expectRefusal(
      await runCommand(kernel.dataDir, 'revoke', 'tab_nobody'),
      'there is no agent tab_nobody',
    )
    expectRefusal(
      await runCommand(kernel.dataDir, 'revoke', operator.id.replace(/.$/, 'x')),
      'there is no operator',
    )
    expectRefusal(
      await runCommand(kernel.dataDir, 'revoke'),
      'revoke takes the address of an agent',
    )

    // Without a kernel, for the next one.
    expect(await kernel.stop()).toBe(0)
    expect((await runCommand(kernel.dataDir, 'revoke', two.address)).code).toBe(0)
    await using again = await startKernel(UNLIMITED, { dataDir: kernel.dataDir })
    const me = await new Client(again.baseUrl).request('GET', '/v1/agents/me', { token: two.token })
    expect(me.status).toBe(401)
    expect((await runCommand(kernel.dataDir, 'verify')).out).toMatch(NOTHING_WRONG)
  })
})

describe('maintain', () => {
  it('removes what is needed no more, beside a kernel and without one', async () => {
    const dataDir = await freshDataDirectory()
    const old = () => {
      const sqlite = new DatabaseSync(database(dataDir), { timeout: 5_000 })
      sqlite.exec(`
        insert into challenges values ('one', 'operator', null, 1);
        insert into event_ids values ('old', 1, 1)`)
      sqlite.close()
    }
    const done = /^challenges: done \(1 rows, .* s\)\nidempotency: done \(1 rows, .* s\)\n$/
    {
      const { kernel, agents } = await started(dataDir)
      await using _ = kernel
      const stop = load(agents)
      // The kernel's own maintenance may come first, once a minute.
      await expect
        .poll(async () => {
          old()
          return (await runCommand(dataDir, 'maintain')).out
        }, WAIT)
        .toMatch(done)
      await stop()
      expect(await kernel.stop()).toBe(0)
    }
    old()
    const { code, out } = await runCommand(dataDir, 'maintain')
    expect({ code, out }).toEqual({ code: 0, out: expect.stringMatching(done) })
    expect((await runCommand(dataDir, 'maintain', 'challenges')).out).toMatch(
      /^challenges: done \(0 rows.*\n$/,
    )
    expectRefusal(
      await runCommand(dataDir, 'maintain', 'allotments'),
      'embedded storage has no job "allotments"',
    )
  })
})

const COMMANDS = [
  ['serve'],
  ['verify'],
  ['tail'],
  ['revoke', 'tab_x'],
  ['remove', 'list'],
  ['maintain'],
  ['backup', '/tmp'],
] as const

it('what a kernel keeps is for its own user to read, whatever the directory allows', async () => {
  const dataDir = await freshDataDirectory()
  await chmod(dataDir, 0o755)
  await using kernel = await startKernel({}, { dataDir })
  for (const name of (await readdir(dataDir)).filter((file) => file.startsWith('tabulum.db'))) {
    expect(((await stat(join(dataDir, name))).mode & 0o777).toString(8), name).toBe('600')
  }
  expect(await kernel.stop()).toBe(0)
})

describe('a data directory that cannot be used is refused by every command, and nothing in it is changed', () => {
  it('one of the old kind', async () => {
    const dataDir = await freshDataDirectory()
    await mkdir(join(dataDir, 'database'))
    await writeFile(join(dataDir, 'database', 'PG_VERSION'), '17\n')
    for (const command of COMMANDS) {
      expectRefusal(
        await runCommand(dataDir, ...command),
        'holds data of an earlier kind of embedded storage (PGlite)',
      )
      expect(await readdir(dataDir, { recursive: true }), command[0]).toEqual([
        'database',
        'database/PG_VERSION',
      ])
    }
  })

  it('a file that is no database', async () => {
    const dataDir = await freshDataDirectory()
    await writeFile(database(dataDir), 'not a database '.repeat(1_000))
    for (const command of COMMANDS) {
      expectRefusal(
        await runCommand(dataDir, ...command),
        `the database ${database(dataDir)} cannot be used: file is not a database`,
      )
    }
    expect(await readFile(database(dataDir), 'utf8')).toBe('not a database '.repeat(1_000))
  })

  it('a database that a kernel has made and left empty: no command but serve takes it', async () => {
    const dataDir = await freshDataDirectory()
    await writeFile(database(dataDir), '')
    for (const command of COMMANDS.slice(1)) {
      expectRefusal(await runCommand(dataDir, ...command), `there is no database in ${dataDir}`)
    }
    await using kernel = await startKernel({}, { dataDir })
    expect(await kernel.stop()).toBe(0)
  })

  it('a database that a later version has used, by serve', async () => {
    const dataDir = await freshDataDirectory()
    {
      await using kernel = await startKernel({}, { dataDir })
      expect(await kernel.stop()).toBe(0)
    }
    const later = new DatabaseSync(database(dataDir))
    later.exec('pragma user_version = 1000')
    later.close()
    expectRefusal(
      await runCommand(dataDir, 'serve'),
      'cannot be used: a later version of the kernel has used it',
    )
  })

  it('a database with damaged pages', async () => {
    const dataDir = await freshDataDirectory()
    {
      const { kernel, agents } = await started(dataDir)
      await using _ = kernel
      await agents[0]?.write('large', 'x'.repeat(500_000))
      expect(await kernel.stop()).toBe(0)
    }
    const file = await readFile(database(dataDir))
    for (let page = 1; page < file.length / 4_096; page++)
      file.fill(0xa5, page * 4_096, page * 4_096 + 4_096)
    await writeFile(database(dataDir), file)
    for (const command of [
      ['serve'],
      ['verify'],
      ['tail'],
      ['revoke', 'tab_x'],
      ['backup', join(dataDir, 'copy.db')],
    ]) {
      expectRefusal(
        await runCommand(dataDir, ...command),
        'cannot be used: database disk image is malformed',
      )
    }
    expect((await readdir(dataDir)).filter((name) => name.startsWith('copy'))).toEqual([])
  })
})

it('commands wait for who writes, and say so where that takes too long', async () => {
  const { kernel, agents } = await started()
  await using _ = kernel
  const [one] = agents as [Agent]
  const other = new DatabaseSync(database(kernel.dataDir))
  other.exec('begin immediate')
  const revoking = runCommand(kernel.dataDir, 'revoke', one.address)
  // Reading goes on, and so does what only reads.
  const writing = one.tryWrite('held up', '1')
  expect((await one.request('GET', '/v1/agents/me')).status).toBe(200)
  expect((await runCommand(kernel.dataDir, 'verify')).out).toMatch(NOTHING_WRONG)
  expectRefusal(await revoking, 'cannot be used: database is locked')
  const answer = await writing
  expect(answer.status).toBe(503)
  expect(answer.headers['retry-after']).toBe('1')
  other.exec('rollback')
  other.close()
  await expect.poll(async () => (await one.tryWrite('again', '1')).status, WAIT).toBe(200)
})

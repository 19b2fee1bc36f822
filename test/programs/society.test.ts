/** examples/society.ts: what it plans, and that a kernel lets it live. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { afterAll, describe, expect, it, onTestFinished } from 'vitest'
import { Society, type Step } from '../../examples/society/plan.ts'
import { startKernel } from '../../lab/kernel.ts'
import { startBadProxy } from '../support/bad-proxy.ts'

const ROOT = join(import.meta.dirname, '..', '..')

const kernel = await startKernel({
  RATE_LIMIT_OPERATOR_PER_HOUR_PER_IP: '100',
  RATE_LIMIT_MESSAGE_PER_MIN: '10000',
  RATE_LIMIT_STATE_WRITE_PER_MIN: '10000',
  RATE_LIMIT_STATE_READ_PER_MIN: '10000',
  RATE_LIMIT_REGISTRY_READ_PER_MIN: '10000',
})
afterAll(() => kernel[Symbol.asyncDispose]())

interface Running {
  readonly child: ChildProcess
  readonly ended: Promise<{ code: number | null; said: string; errors: string }>
}

function run(...options: string[]): Running {
  const child = spawn(process.execPath, ['examples/society.ts', ...options], {
    cwd: ROOT,
    env: { PATH: process.env.PATH ?? '', TABULUM_URL: kernel.baseUrl },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  onTestFinished(() => void child.kill('SIGKILL'))
  let said = ''
  let errors = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors += text
  })
  return { child, ended: once(child, 'close').then(([code]) => ({ code, said, errors })) }
}

function steps(agents: number, seed: number, many: number): Step[] {
  return new Society(agents, seed).steps().take(many).toArray()
}

describe('the plan', () => {
  it('is the same for the same seed, and another for another', () => {
    expect(steps(60, 7, 5_000)).toEqual(steps(60, 7, 5_000))
    expect(steps(60, 8, 5_000)).not.toEqual(steps(60, 7, 5_000))
  })

  it.each([2, 3, 40, 300])(
    'of %i agents is a life: in order, all kinds of acts, sentences whole',
    (agents) => {
      const all = steps(agents, 1, 20_000)
      expect(all.every(({ at }, index) => index === 0 || at >= (all[index - 1]?.at ?? 0))).toBe(
        true,
      )
      expect(new Set(all.map(({ act }) => act.kind))).toEqual(
        new Set(['arrive', 'say', 'fetch', 'write', 'delete', 'read', 'look up']),
      )
      const arrived = new Set<number>()
      const written = new Set<string>()
      for (const { who, act } of all) {
        if (act.kind === 'arrive') arrived.add(who)
        expect(arrived.has(who)).toBe(true)
        if (act.kind === 'write') written.add(act.key)
        if (act.kind === 'delete') expect(written.delete(act.key), act.key).toBe(true)
        if (act.kind !== 'say') continue
        expect(arrived.has(act.to) && act.to !== who).toBe(true)
        expect(act.text).toMatch(/^["\p{Lu}][^{}]+[.!?]$/u)
      }
      expect(arrived.size).toBe(agents)
    },
  )
})

describe('the program', () => {
  it('lets a society live for a while, who talk, answer, and keep things', async () => {
    const { code, said, errors } = await run('--agents', '12', '--speed', '300', '--minutes', '0.2')
      .ended
    expect({ code, errors }).toEqual({ code: 0, errors: '' })
    expect(said).toMatch(/over: [1-9]\d* messages, [1-9]\d* writes/)
    const events = await kernel.events()
    for (const type of [
      'agent_registered',
      'message_sent',
      'message_delivered',
      'state_written',
      'registry_read',
    ])
      expect(
        events.some((event) => event.type === type),
        type,
      ).toBe(true)
    const sent = events
      .filter(({ type }) => type === 'message_sent')
      .map(({ data }) => `${data.from} ${data.to}`)
    expect(sent.some((pair) => sent.includes(pair.split(' ').toReversed().join(' ')))).toBe(true)
    const keys = events
      .filter(({ type }) => type === 'state_written')
      .map(({ data }) => String(data.key))
    expect(keys.filter((key) => key.startsWith('people/')).length).toBeGreaterThan(5)
  })

  it('comes again when it was told to, and not sooner', async () => {
    await using proxy = await startBadProxy(kernel.baseUrl)
    const running = run('--url', proxy.url, '--agents', '4', '--speed', '300', '--minutes', '0.4')
    expect(await running.ended).toMatchObject({ code: 0, errors: '' })
    expect(proxy.refused).toBeGreaterThan(3)
    expect(proxy.impatience).toEqual([])
  })

  it('ends at Ctrl-C with what is under way', async () => {
    const { child, ended } = run('--agents', '20', '--speed', '100')
    if (child.stdout) await once(child.stdout, 'data')
    child.kill('SIGINT')
    const { code, said, errors } = await ended
    expect({ code, errors }).toEqual({ code: 0, errors: '' })
    expect(said).toMatch(/over: \d+ messages.*\n$/)
  })

  it.each([
    [['--agents', '1'], '--agents 1: must be a whole number from 2 to 2500'],
    [['--agents', '2.5'], '--agents 2.5: must be a whole number'],
    [['--speed', 'fast'], '--speed fast: must be a number from 0.01'],
    [['--minutes', ''], '--minutes : must be a number'],
    [['--url', 'nowhere'], '--url nowhere: must begin with http:// or https://'],
    [['--loud'], "Unknown option '--loud'"],
  ])('says what is wrong with %j', async (options, message) => {
    const { code, said, errors } = await run(...options).ended
    expect({ code, said }).toEqual({ code: 2, said: '' })
    expect(errors).toContain(`society: ${message}`)
  })
})

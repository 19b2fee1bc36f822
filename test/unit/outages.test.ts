/**
 * Which errors are outages, what is told of errors, and that none ends a process that can go on.
 */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { toApiError } from '../../src/api/errors.ts'
import { LogUnavailable } from '../../src/events/event-log.ts'
import { QueueUnavailable } from '../../src/messaging/message-queue.ts'
import { DatabaseUnavailable, isOutage } from '../../src/platform/database.ts'
import { createLogger, describeError } from '../../src/platform/logger.ts'
import { RedisUnavailable } from '../../src/platform/redis.ts'
import { NotThereYet, StartupError, untilThere } from '../../src/platform/startup-error.ts'
import { Unavailable } from '../../src/platform/unavailable.ts'

/** As the driver gives what Postgres answers. */
const answer = (code: string) =>
  Object.assign(new Error(`SQLSTATE ${code}`), { code, severity: 'ERROR' })
/** As Node, TLS and the driver itself give theirs. */
const failure = (code: string) => Object.assign(new Error(code), { code })

describe('an error on the way to Postgres', () => {
  it.each([
    ...[
      '40P01',
      '40001',
      '55P03',
      '57014',
      '57P01',
      '57P02',
      '57P03',
      '53300',
      '53200',
      '53100',
      '08006',
      '08P01',
    ],
    ...['28P01', '28000', '3D000', '25006', '25P03', '26000', '58030', 'XX000', 'XX001', 'F0000'],
  ])('is an outage: SQLSTATE %s', (code) => expect(isOutage(answer(code))).toBe(true))

  it.each([
    ...[
      'ENETUNREACH',
      'EHOSTUNREACH',
      'ECONNRESET',
      'EPIPE',
      'ETIMEDOUT',
      'ENOTFOUND',
      'EAI_AGAIN',
      'EHOSTDOWN',
    ],
    ...[
      'EMFILE',
      'CERT_HAS_EXPIRED',
      'ERR_TLS_CERT_ALTNAME_INVALID',
      'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    ],
    ...[
      'CONNECT_TIMEOUT',
      'CONNECTION_CLOSED',
      'CONNECTION_ENDED',
      'CONNECTION_DESTROYED',
      'SASL_SIGNATURE_MISMATCH',
    ],
  ])('is an outage: %s', (code) => expect(isOutage(failure(code))).toBe(true))

  it.each([
    '42P01',
    '42601',
    '42501',
    '22P02',
    '22021',
    '23505',
    '21000',
    '0A000',
    '2F005',
    '39004',
    '54000',
    'P0001',
  ])('is a defect: SQLSTATE %s', (code) => expect(isOutage(answer(code))).toBe(false))

  it.each([
    ['a call of the driver that is wrong', failure('UNDEFINED_VALUE')],
    [
      'a value that cannot be sent',
      Object.assign(new TypeError('x'), { code: 'ERR_INVALID_ARG_TYPE' }),
    ],
    ['an error of this program', new TypeError('undefined is not a function')],
    ['no row where there has to be one', new Error('no result')],
  ])('is a defect: %s', (_what, error) => expect(isOutage(error)).toBe(false))
})

it.each([
  new DatabaseUnavailable('out'),
  new RedisUnavailable('out'),
  new LogUnavailable('out'),
  new QueueUnavailable('out'),
  new Unavailable('out'),
  new (class SomethingElseUnavailable extends Unavailable {})('out'),
])('%s is answered 503 with Retry-After', (error) => {
  const { code, headers } = toApiError(error)
  expect({ code, headers }).toEqual({ code: 'unavailable', headers: { 'Retry-After': '1' } })
})

describe('what is told of an error', () => {
  it('is its class, message, code, stack and causes; no statement, no parameter, no row', () => {
    const refused = Object.assign(new Error('duplicate key value violates "secret-in-message"'), {
      code: '23505',
      severity: 'ERROR',
      detail: 'Key (token)=(secret-in-detail) already exists.',
      where: 'secret-in-where',
      query: 'insert into secret-in-query',
      parameters: ['secret-in-parameter'],
    })
    const line = JSON.stringify(describeError(new DatabaseUnavailable('out', { cause: refused })))
    expect(line).not.toContain('secret')
    expect(JSON.parse(line)).toMatchObject({
      type: 'DatabaseUnavailable',
      message: 'out',
      stack: expect.arrayContaining([expect.stringMatching(/^at /)]),
      cause: { type: 'Error', code: '23505' },
    })
  })

  it('ends, however long the chain of its causes is', () => {
    const error = new Error('round')
    error.cause = error
    expect(JSON.stringify(describeError(error)).length).toBeLessThan(100_000)
  })
})

describe('a process', () => {
  const PLATFORM = join(import.meta.dirname, '..', '..', 'src', 'platform')
  async function run(code: string) {
    const source = `
      import { hearProcessErrors, inBackground } from '${PLATFORM}/background.ts'
      import { createLogger } from '${PLATFORM}/logger.ts'
      import { Unavailable } from '${PLATFORM}/unavailable.ts'
      import { register } from 'prom-client'
      hearProcessErrors(createLogger('debug', 'test'))
      ${code}`
    const child = promisify(execFile)(
      process.execPath,
      ['--input-type=module-typescript', '--eval', source],
      {
        cwd: join(PLATFORM, '..', '..'),
      },
    )
    return child.then(
      ({ stdout }) => ({ code: 0, stdout }),
      (error: { code: number; stdout: string }) => error,
    )
  }

  it('goes on after a rejection that nobody heard, which it logs with its stack and counts', async () => {
    const { code, stdout } = await run(`
      Promise.reject(Object.assign(new Error('unheard'), { parameters: ['secret'], detail: 'secret' }))
      setImmediate(async () => console.log('goes on', await register.getSingleMetricAsString('tabulum_unhandled_rejections_total')))`)
    expect(code).toBe(0)
    expect(stdout).toMatch(/"level":50.*"message":"unheard".*"stack":\["at /)
    expect(stdout).toMatch(/^tabulum_unhandled_rejections_total 1$/m)
    expect(stdout).toContain('goes on')
    expect(stdout).not.toContain('secret')
  })

  it('ends with 1 after an exception that nobody caught, and says which', async () => {
    const { code, stdout } = await run(`
      setTimeout(() => { throw new Error('uncaught') }, 1)
      setTimeout(() => console.log('goes on'), 5_000)`)
    expect(code).toBe(1)
    expect(stdout).toMatch(/"level":60.*"message":"uncaught".*"stack":\["at /)
    expect(stdout).not.toContain('goes on')
  })

  it('logs and counts what fails in the background: a defect as an error, an outage for those who look closely', async () => {
    const { code, stdout } = await run(`
      inBackground('one', Promise.reject(new Error('a mistake')))
      inBackground('two', Promise.reject(new Unavailable('is out')))
      inBackground('three', Promise.resolve())
      setImmediate(async () => console.log(await register.getSingleMetricAsString('tabulum_background_failures_total')))`)
    expect(code).toBe(0)
    expect(stdout).toMatch(/"level":50.*"task":"one".*"message":"a mistake"/)
    expect(stdout).toMatch(/"level":20.*"task":"two".*is out/)
    expect(stdout).toContain('tabulum_background_failures_total{task="one",reason="defect"} 1')
    expect(stdout).toContain('tabulum_background_failures_total{task="two",reason="outage"} 1')
    expect(stdout).not.toContain('three')
  })
})

describe('the wait at the start', () => {
  const silent = createLogger('silent', 'test')

  it('lasts until what is needed is there', async () => {
    let asked = 0
    const open = async () => {
      if (++asked === 1) throw new NotThereYet('refused')
      if (asked === 2) throw new DatabaseUnavailable('out')
      return 'there'
    }
    expect(await untilThere(open, 60_000, silent)).toBe('there')
  })

  it('ends with what was missing, and the setting that says for how long', async () => {
    const open = () => Promise.reject(new NotThereYet('the password is wrong'))
    const failed = await untilThere(open, 600, silent).catch((error: unknown) => error)
    expect(failed).toBeInstanceOf(StartupError)
    expect(String(failed)).toMatch(/the password is wrong \(waited for 0\.6 s: STARTUP_TIMEOUT\)/)
  })

  it('does not begin where waiting cannot help', async () => {
    let asked = 0
    const open = () => {
      asked++
      return Promise.reject(new StartupError('set max_payload'))
    }
    await expect(untilThere(open, 60_000, silent)).rejects.toThrow('set max_payload')
    expect(asked).toBe(1)
  })
})

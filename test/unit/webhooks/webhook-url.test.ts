import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { type LookUp, scriptedResolver } from '../../../lab/receiver.ts'
import { parseCidr } from '../../../src/webhooks/public-address.ts'
import { HostNotPublic, HostUnresolved } from '../../../src/webhooks/public-host.ts'
import {
  checkWebhookUrl,
  hostOf,
  parseWebhookUrl,
  readWebhookUrl,
  WebhookUrlRefused,
} from '../../../src/webhooks/webhook-url.ts'

describe('a webhook URL', () => {
  test.each([
    ['https://example.com', 'https://example.com/'],
    ['HTTPS://EXAMPLE.com:443/Hook?b=1&a=2', 'https://example.com/Hook?b=1&a=2'],
    ['https://example.com:1/', 'https://example.com:1/'],
    ['https://example.com:65535/', 'https://example.com:65535/'],
    ['https://example.com./hook', 'https://example.com/hook'],
    ['https://example.com/hook#part', 'https://example.com/hook'],
    ['https://bücher.example/', 'https://xn--bcher-kva.example/'],
    ['https://1.1.1.1./', 'https://1.1.1.1/'],
    ['https://[2606:4700::0001]/', 'https://[2606:4700::1]/'],
    ['https://a_b.example/', 'https://a_b.example/'],
  ])('%s becomes %s', (text, href) => {
    expect(parseWebhookUrl(text).href).toBe(href)
  })

  test.each([
    ['2130706433', 'decimal'],
    ['017700000001', 'octal'],
    ['0x7F000001', 'hexadecimal'],
    ['0x7f.0.0.0x1', 'hexadecimal parts'],
    ['0177.0.0.01', 'octal parts'],
    ['127.1', 'two parts'],
    ['127.0.1', 'three parts'],
    ['127.0.0.1.', 'final dot'],
    ['１２７。０。０。１', 'full-width'],
    ['%31%32%37.0.0.1', 'percent-encoded'],
    ['①②⑦.0.0.1', 'circled digits'],
  ])('has the host 127.0.0.1 for %s (%s)', (hostname) => {
    expect(parseWebhookUrl(`https://${hostname}/`).hostname).toBe('127.0.0.1')
  })

  test.each([
    ['', 'not a valid URL'],
    ['example.com', 'not a valid URL'],
    ['https://', 'not a valid URL'],
    ['https://1.2.3.256/', 'not a valid URL'],
    ['https://0x100000000/', 'not a valid URL'],
    ['https://[::1', 'not a valid URL'],
    ['https://[fe80::1%25eth0]/', 'not a valid URL'],
    ['https://example.com:65536/', 'not a valid URL'],
    ['https://example.com:-1/', 'not a valid URL'],
    ['https://exa<mple.com/', 'not a valid URL'],
    ['http://example.com/', 'https://'],
    ['ftp://example.com/', 'https://'],
    ['file:///etc/passwd', 'https://'],
    ['javascript:alert(1)', 'https://'],
    ['https://user@example.com/', 'user or password'],
    ['https://:password@example.com/', 'user or password'],
    ['https://example.com:0/', 'port'],
    [' https://example.com/', 'blanks'],
    ['https://example.com/\n', 'blanks'],
    ['htt\tps://example.com/', 'blanks'],
    ['https://example.com/a b', 'blanks'],
    ['https://example.com/\u2028', 'blanks'],
    ['https://a..example/', 'cannot exist'],
    ['https://.example/', 'cannot exist'],
    ['https://example../', 'cannot exist'],
    ['https://1.2.3.4../', 'cannot exist'],
    [`https://${'a.'.repeat(127)}example/`, 'cannot exist'],
    [`https://example.com/${'a'.repeat(2_048)}`, 'longer than 2048'],
    [`https://example.com/${'é'.repeat(1_000)}`, 'longer than 2048'],
  ])('is not %j', (text, reason) => {
    expect(() => parseWebhookUrl(text)).toThrow(WebhookUrlRefused)
    expect(() => parseWebhookUrl(text)).toThrow(reason)
  })

  test('in its normal form is the normal form of itself, and fits into a request line', () => {
    const text = fc.oneof(
      fc.webUrl({ validSchemes: ['https'], withQueryParameters: true, withFragments: true }),
      fc.string().map((rest) => `https://example.com/${rest}`),
    )
    fc.assert(
      fc.property(text, (given) => {
        let url: URL
        try {
          url = parseWebhookUrl(given)
        } catch (error) {
          expect(error).toBeInstanceOf(WebhookUrlRefused)
          return
        }
        expect(parseWebhookUrl(url.href).href).toBe(url.href)
        expect(url.href).toMatch(/^https:\/\/[\x21-\x7e]+$/)
      }),
      { numRuns: 1_000 },
    )
  })

  test('has the host that net and dns take', () => {
    expect(hostOf(parseWebhookUrl('https://[2606:4700::1]:8443/'))).toBe('2606:4700::1')
    expect(hostOf(parseWebhookUrl('https://Example.com:8443/'))).toBe('example.com')
  })
})

describe('the host of a webhook URL', () => {
  const check = (url: string, addresses: LookUp | 'never' = [], allow: readonly string[] = []) =>
    checkWebhookUrl(parseWebhookUrl(url), {
      resolve: scriptedResolver({ 'hook.example': [addresses] }),
      allow: allow.map(parseCidr),
      deadlineMs: 50,
    })

  test('may resolve to public addresses', async () => {
    await check('https://hook.example/', ['1.1.1.1', '2606:4700::1'])
  })

  test('may be a public address, which is not looked up', async () => {
    const resolve = scriptedResolver({})
    await checkWebhookUrl(parseWebhookUrl('https://1.1.1.1/'), { resolve, allow: [] })
    await checkWebhookUrl(parseWebhookUrl('https://[2606:4700::1]/'), { resolve, allow: [] })
    expect(resolve.lookUps).toEqual([])
  })

  test('may resolve to an allowed address', async () => {
    await check('https://hook.example/', ['10.0.0.1'], ['10.0.0.0/8'])
    await check('https://127.1/', [], ['127.0.0.0/8'])
  })

  test('may be, or resolve to, a public address as DNS64 writes it', async () => {
    await check('https://[64:ff9b::1.1.1.1]/')
    await check('https://hook.example/', ['64:ff9b::101:101', '1.1.1.1'])
  })

  const refusedAddresses = [
    '10.0.0.1',
    '169.254.169.254',
    '127.0.0.1',
    '0.0.0.0',
    '::1',
    '::ffff:1.1.1.1',
    '64:ff9b::a00:1',
    '64:ff9b:1::101:101',
    '2002:101:101::1',
    'fd00::1',
  ]

  test.each(refusedAddresses)(
    'may not be %s, nor resolve to it, alone or beside a public address',
    async (address) => {
      const literal = address.includes(':') ? `[${address}]` : address
      for (const attempt of [
        check(`https://${literal}/`),
        check('https://hook.example/', [address]),
        check('https://hook.example/', ['1.1.1.1', address]),
        check('https://hook.example/', [address, '1.1.1.1']),
      ]) {
        await expect(attempt).rejects.toThrow(WebhookUrlRefused)
        await expect(attempt).rejects.toMatchObject({ cause: expect.any(HostNotPublic) })
      }
    },
  )

  test.each<[string, LookUp | 'never']>([
    ['has no address', []],
    ['is looked up in vain', new Error('SERVFAIL')],
  ])('is refused when it %s', async (_how, addresses) => {
    await expect(check('https://hook.example/', addresses)).rejects.toMatchObject({
      name: 'WebhookUrlRefused',
      cause: expect.any(HostUnresolved),
    })
  })

  test('is refused when it does not resolve in time, even by a resolver that heeds no signal', async () => {
    await expect(check('https://hook.example/', 'never')).rejects.toThrow(WebhookUrlRefused)
  })

  test('is refused in the same words whether it does not exist or is on our network, and they tell no address', async () => {
    const message = (attempt: Promise<void>) =>
      attempt.then(
        () => 'accepted',
        (error: Error) => error.message,
      )
    const messages = await Promise.all([
      message(check('https://hook.example/', ['10.11.12.13'])),
      message(check('https://hook.example/', ['fd00::1'])),
      message(check('https://missing.example/')),
      message(check('https://hook.example/', 'never')),
    ])
    expect(new Set(messages)).toEqual(
      new Set(['the host of webhook_url must resolve, and to public addresses only']),
    )
  })

  test('is left unchecked when the caller gives up, with the caller’s reason', async () => {
    const stop = new AbortController()
    const resolve = scriptedResolver({ 'hook.example': ['never'] })
    const attempt = checkWebhookUrl(
      parseWebhookUrl('https://hook.example/'),
      { resolve, allow: [] },
      stop.signal,
    )
    stop.abort(new Error('the client went away'))
    await expect(attempt).rejects.toThrow('the client went away')
  })
})

describe('user and password', () => {
  const decoded = (authorization = '') => {
    expect(authorization).toMatch(/^Basic [A-Za-z0-9+/]+={0,2}$/)
    return Buffer.from(authorization.slice('Basic '.length), 'base64').toString()
  }

  test.each([
    ['https://user:pass@example.com/x', 'user:pass'],
    ['https://user@example.com/', 'user:'],
    ['https://:pass@example.com/', ':pass'],
    ['https://u:p:q@example.com/', 'u:p:q'],
    ['https://a%40b:p%2F%3A%25@example.com/', 'a@b:p/:%'],
    ['https://m%C3%BCller:gr%C3%BC%C3%9Fe@example.com/', 'müller:grüße'],
    ['https://müller:🙂@example.com/', 'müller:🙂'],
    ['https://user:a%20b@example.com/', 'user:a b'],
    // Of several @ the last ends it.
    ['https://a@b:c@example.com/', 'a@b:c'],
  ])('of %s are taken out, decoded', (text, expected) => {
    const { url, authorization } = readWebhookUrl(text)
    expect(decoded(authorization)).toBe(expected)
    expect(url).toMatch(/^https:\/\/example\.com\//)
    expect(() => parseWebhookUrl(url)).not.toThrow()
  })

  test.each(['https://example.com/x@y', 'https://@example.com/', 'https://:@example.com/'])(
    '%s has none',
    (text) => {
      expect(readWebhookUrl(text).authorization).toBeUndefined()
      expect(readWebhookUrl(text).url).toMatch(/^https:\/\/example\.com\//)
    },
  )

  test.each([
    ['https://a%zz:b@example.com/', 'percent-encoded UTF-8'],
    ['https://a:100%@example.com/', 'percent-encoded UTF-8'],
    ['https://a:%ff@example.com/', 'percent-encoded UTF-8'],
    ['https://a:%0d%0aX-Evil: 1@example.com/'.replace(' ', ''), 'control characters'],
    ['https://a%00:b@example.com/', 'control characters'],
    ['https://a:%7f@example.com/', 'control characters'],
    ['https://a%3Ab:c@example.com/', 'colon'],
  ])('of %s are refused', (text, expected) => {
    expect(() => readWebhookUrl(text)).toThrow(WebhookUrlRefused)
    expect(() => readWebhookUrl(text)).toThrow(expected)
  })

  test('whatever they are, come out as they went in, and are nowhere in what is refused or stored', () => {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: those are what must not be in it.
    const control = /[\0-\x1f\x7f-\x9f]/
    const word = fc.string({ unit: 'binary', minLength: 1 }).filter((text) => !control.test(text))
    fc.assert(
      fc.property(word, word, (user, password) => {
        fc.pre(!user.includes(':'))
        const text = `https://${encodeURIComponent(user)}:${encodeURIComponent(password)}@example.com/hook`
        fc.pre(text.length <= 2_048)
        const { url, authorization } = readWebhookUrl(text)
        expect(decoded(authorization)).toBe(`${user}:${password}`)
        expect(url).toBe('https://example.com/hook')
      }),
    )
  })
})

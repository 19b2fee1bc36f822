/** What `remove` says of arguments that it cannot do anything with. It has opened nothing then. */
import { randomUUID } from 'node:crypto'
import { expect, it } from 'vitest'
import { remove } from '../../src/commands/remove.ts'
import { loadConfig } from '../../src/config.ts'

const YES = { yes: true }
const WHY = { reason: 'court order' }
const [KEY, ID] = [{ key: 'key' }, { id: randomUUID() }]

it.each([
  [[], YES, {}, 'remove takes what to remove: state or message; or list'],
  [['key'], YES, { ...WHY }, 'remove takes what to remove: state or message; or list'],
  [['state'], YES, WHY, 'remove state takes the key to remove: --key'],
  [
    ['state'],
    YES,
    { ...WHY, ...KEY, 'encoded-key': 'a' },
    'remove state takes the key to remove: --key',
  ],
  [['state'], YES, { ...WHY, 'encoded-key': '%ff' }, '"%ff" is no key'],
  [['state'], YES, { ...WHY, key: '' }, '"" is no key'],
  [['state'], YES, KEY, '--reason is missing: why it is illegal to host'],
  [['state'], YES, { ...KEY, reason: ' ' }, '--reason is missing'],
  [['state'], YES, { ...KEY, reason: 'a\nb' }, '--reason is to be a line of 1 to 1000 characters'],
  [
    ['state'],
    YES,
    { ...KEY, reason: 'a'.repeat(1_001) },
    '--reason is to be a line of 1 to 1000 characters',
  ],
  [['state'], YES, { ...KEY, ...WHY, by: '' }, '--by is to be a line of 1 to 200 characters'],
  [['state'], YES, { ...KEY, ...WHY, ...ID }, 'remove state does not take --id: it takes --key'],
  [['state', 'key'], YES, WHY, 'remove state does not take "key": it takes --key'],
  [['state'], {}, { ...KEY, ...WHY }, 'there is no terminal to ask on: add --yes, or --dry-run'],
  [['message'], YES, WHY, 'remove message takes the id of the message to remove: --id <UUID>'],
  [
    ['message'],
    YES,
    { ...WHY, id: 'x' },
    'remove message takes the id of the message to remove: --id <UUID>',
  ],
  [
    ['message'],
    YES,
    { ...WHY, ...ID, ...KEY },
    'remove message does not take --key: it takes --id',
  ],
  [['list'], YES, {}, 'remove list does not take --yes: it takes nothing else'],
] as const)('%j with %j and %j', async (args, flags, options, message) => {
  const removing = remove(loadConfig({ DATA_DIR: '/nowhere' }), args, flags, options)
  await expect(removing).rejects.toMatchObject({
    name: 'StartupError',
    message: expect.stringContaining(message),
  })
})

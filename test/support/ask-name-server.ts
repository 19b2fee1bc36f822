/**
 * Loaded before a kernel process (`node --import`), makes it ask the name server of a test instead
 * of those of the machine: `TEST_NAME_SERVER`, as `address:port`. Nothing else of the process is
 * changed; that setting belongs to the machine, and to change it there takes root.
 */
import dns, { Resolver } from 'node:dns/promises'
import { syncBuiltinESMExports } from 'node:module'

const servers = [process.env.TEST_NAME_SERVER ?? '']

dns.Resolver = class extends Resolver {
  constructor(...options: ConstructorParameters<typeof Resolver>) {
    super(...options)
    this.setServers(servers)
  }
}
syncBuiltinESMExports()

/** A stand-in for the `nc` of the image that deploy/nats runs in, which few machines have. */
import { chmodSync, existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const BASH = '/bin/bash'
/**
 * Several servers ask several times in a second: a Node for each question would keep a processor
 * busy.
 */
const IN_BASH = `#!${BASH}
exec 3<>"/dev/tcp/$1/$2" || exit 1
cat >&3
cat <&3
`
const IN_NODE = `import { connect } from 'node:net'
const [host, port] = process.argv.slice(2)
const socket = connect(Number(port), host).on('error', () => process.exit(1))
process.stdin.pipe(socket).pipe(process.stdout)
`

/** Puts it into a directory that is to be on the PATH. */
export function installNc(directory: string): void {
  const nc = join(directory, 'nc')
  if (existsSync(BASH)) {
    writeFileSync(nc, IN_BASH)
  } else {
    const program = join(directory, 'nc.mjs')
    writeFileSync(program, IN_NODE)
    writeFileSync(nc, `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`)
  }
  chmodSync(nc, 0o755)
}

/** A stand-in for the `nc` of the image that deploy/nats runs in, which few machines have. */
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const PROGRAM = `import { connect } from 'node:net'
const [host, port] = process.argv.slice(2)
const socket = connect(Number(port), host).on('error', () => process.exit(1))
process.stdin.pipe(socket).pipe(process.stdout)
`

/** Puts it into a directory that is to be on the PATH. */
export function installNc(directory: string): void {
  const program = join(directory, 'nc.mjs')
  writeFileSync(program, PROGRAM)
  writeFileSync(join(directory, 'nc'), `#!/bin/sh\nexec '${process.execPath}' '${program}' "$@"\n`)
  chmodSync(join(directory, 'nc'), 0o755)
}

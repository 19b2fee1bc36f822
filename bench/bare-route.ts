/** The least that an HTTP answer costs on this machine: a Hono route in a process of its own that returns a constant. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type Figures, load } from './load.ts'

const PROGRAM = `
import { serve } from '@hono/node-server'
import { Hono } from 'hono'
const app = new Hono().get('/', (context) => context.json({ status: 'ok' }))
serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, ({ port }) => console.log(port))
`

export async function measureBareRoute(seconds: number): Promise<Figures> {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', PROGRAM], {
    cwd: import.meta.dirname,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    const [port] = await once(child.stdout, 'data')
    return await load(
      `http://127.0.0.1:${String(port).trim()}`,
      seconds,
      () => ({ method: 'GET', path: '/' }),
      child.pid === undefined ? {} : { bare: child.pid },
    )
  } finally {
    child.kill('SIGKILL')
  }
}

/** Resident memory of the embedded kernel. */
import { readFile } from 'node:fs/promises'
import { Client } from '../lab/client.ts'
import { startKernel } from '../lab/kernel.ts'

const AT_ONCE = 32

/** MiB idle after the start, and after so many agents have registered, each with a session. */
export async function measureMemory(
  agents: number,
  settings: Readonly<Record<string, string>>,
): Promise<Record<string, number>> {
  await using kernel = await startKernel(settings)
  const idle = await residentMiB(kernel.pid)
  const operator = await new Client(kernel.baseUrl).registerOperator()
  let left = agents
  const begin = performance.now()
  await Promise.all(
    Array.from({ length: AT_ONCE }, async () => {
      while (left-- > 0) await (await operator.registerAgent()).me()
    }),
  )
  return {
    'idle MiB': idle,
    [`after ${agents} agents MiB`]: await residentMiB(kernel.pid),
    'agents registered a second (bcrypt cost 4)': Math.round(
      agents / ((performance.now() - begin) / 1_000),
    ),
  }
}

export async function residentMiB(pid: number): Promise<number> {
  const kilobytes = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Math.round(Number(kilobytes) / 1_024)
}

/** `maintain`: does the work of maintenance now. */
import type { Config } from '../config.ts'
import { type Job, runJob } from '../maintenance/job.ts'
import { CLUSTER_JOBS, EMBEDDED_JOBS } from '../maintenance/jobs.ts'
import { createLogger } from '../platform/logger.ts'
import { StartupError } from '../platform/startup-error.ts'
import { withClusterJobs } from '../storage/cluster.ts'
import { withEmbeddedJobs } from '../storage/embedded.ts'

export async function maintain(config: Config, names: readonly string[]): Promise<void> {
  const known: readonly string[] = config.cluster ? CLUSTER_JOBS : EMBEDDED_JOBS
  const unknown = names.find((name) => !known.includes(name))
  if (unknown !== undefined) {
    const storage = config.cluster ? 'a cluster' : 'embedded storage'
    throw new StartupError(
      `${storage} has no job ${JSON.stringify(unknown)}: there are ${known.join(', ')}`,
    )
  }
  const perform = async (jobs: readonly Job[]) => {
    const logger = createLogger('silent', 'maintain')
    for (const job of jobs.filter(({ name }) => names.length === 0 || names.includes(name))) {
      const { outcome, rows, seconds, reason } = await runJob(job, {
        signal: new AbortController().signal,
        logger,
      })
      const why = reason === undefined ? '' : `: ${reason}`
      console.log(`${job.name}: ${outcome}${why} (${rows} rows, ${seconds.toFixed(1)} s)`)
      if (outcome === 'failed') process.exitCode = 1
    }
  }
  await (config.cluster ? withClusterJobs : withEmbeddedJobs)(config, perform)
}

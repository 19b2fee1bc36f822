import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { DEPLOY } from '../../lab/servers/deploy.ts'

const panel = z.looseObject({ targets: z.array(z.looseObject({ expr: z.string() })).default([]) })
const dashboard = z.looseObject({ panels: z.array(panel) })

/** What the dashboard for Grafana asks Prometheus. */
export function dashboardQueries(): string[] {
  const { panels } = dashboard.parse(
    JSON.parse(readFileSync(join(DEPLOY, 'grafana', 'tabulum.json'), 'utf8')),
  )
  return panels.flatMap(({ targets }) => targets.map(({ expr }) => expr))
}

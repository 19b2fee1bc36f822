/** The metrics of a process, and of a thread of it that keeps its own. */
import {
  AggregatorRegistry,
  type MetricObjectWithValues,
  type MetricValue,
  register,
} from 'prom-client'

/** Metrics as they can be sent from a thread to another. */
export type Metrics = MetricObjectWithValues<MetricValue<string>>[]

/** Of the whole process: each of its threads would say the same, or of itself what nobody asked. */
const OF_PROCESS = /^tabulum_(process|nodejs)_/

/** What this thread counts and measures, without what is of the whole process. */
export async function metricsOfThread(): Promise<Metrics> {
  return collect((name) => !OF_PROCESS.test(name))
}

/**
 * All metrics, as Prometheus has it.
 *
 * @param others of another thread, which are added to those of this one
 */
export async function formatMetrics(others: Metrics): Promise<string> {
  if (others.length === 0) return register.metrics()
  const names = new Set(others.map(({ name }) => name))
  const alone = register.getMetricsAsArray().filter(({ name }) => !names.has(name))
  const texts = await Promise.all([
    ...alone.map(({ name }) => register.getSingleMetricAsString(name)),
    collect((name) => names.has(name)).then((both) =>
      AggregatorRegistry.aggregate([both, others]).metrics(),
    ),
  ])
  return `${texts.join('\n\n').trimEnd()}\n`
}

/** Only those that are wanted: some look something up when they are collected. */
function collect(isWanted: (name: string) => boolean): Promise<Metrics> {
  const wanted = register.getMetricsAsArray().filter(({ name }) => isWanted(name))
  return Promise.all(wanted.flatMap(({ name }) => register.getSingleMetric(name)?.get() ?? []))
}

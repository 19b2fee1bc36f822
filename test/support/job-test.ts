/** What tests of jobs share: a value of a metric, and that no promise is rejected unheard. */
import { register } from 'prom-client'
import { afterEach, beforeEach, expect } from 'vitest'

export async function metric(
  name: string,
  labels: Record<string, string> = {},
): Promise<number | undefined> {
  const values = (await register.getSingleMetric(name)?.get())?.values ?? []
  const matches = (value: Partial<Record<string, string | number>>) =>
    Object.entries(labels).every(([label, wanted]) => value[label] === wanted)
  return values.find((value) => matches(value.labels))?.value
}

/** For the top of a test file: each of its tests fails where a rejection reaches the process. */
export function allowNoUnheardRejection(): void {
  const rejections: unknown[] = []
  const hear = (reason: unknown) => rejections.push(reason)
  beforeEach(() => {
    rejections.length = 0
    process.on('unhandledRejection', hear)
  })
  afterEach(() => {
    process.off('unhandledRejection', hear)
    expect(rejections).toEqual([])
  })
}

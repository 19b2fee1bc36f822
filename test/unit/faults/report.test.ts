import { expect, it } from 'vitest'
import type { FaultRecord, Operation } from '../../../lab/faults/history.ts'
import { reportOf } from '../../../lab/faults/report.ts'

const fault = (
  name: string,
  began: number,
  repaired: number,
  more: Partial<FaultRecord> = {},
): FaultRecord => ({
  name,
  hits: ['redis'],
  began,
  repaired,
  ...more,
})
const read = (status: number, began: number, ended: number): Operation => ({
  kind: 'read',
  agent: 'anna',
  key: 'key',
  status,
  began,
  ended,
})

it('says of each kind how often it was, what failed meanwhile, and what was seen of it', () => {
  const faults = [
    fault('redis full', 100, 200, { seen: 3 }),
    fault('redis killed', 1_000, 1_100),
    fault('redis full', 2_000, 2_100, { seen: 4 }),
  ]
  const operations = [
    read(503, 90, 110),
    read(0, 150, 160),
    read(200, 150, 160),
    read(503, 300, 310),
    read(503, 2_050, 2_300),
  ]
  expect(reportOf({ faults, operations }).split('\n')).toEqual([
    '   2 redis full: 3 requests failed meanwhile; 7 commands that it refused',
    '   1 redis killed: 0 requests failed meanwhile',
  ])
})

it('says nothing of a run in which nothing was broken', () => {
  expect(reportOf({ faults: [], operations: [read(503, 0, 1)] })).toBe('')
})

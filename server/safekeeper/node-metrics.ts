/** What a safekeeper counts about itself; docs/operations.md has the table. */
import { DISK_SECONDS, type MetricsPart, NO_METRICS } from '../shared/metrics.ts'
import type { CellNode } from './node.ts'

export class NodeMetrics {
  private readonly appendSeconds
  private appends = 0
  private appendedBytes = 0
  readonly isOn: boolean

  constructor(node: CellNode, part: MetricsPart = NO_METRICS) {
    this.isOn = part !== NO_METRICS
    this.appendSeconds = part.histogram(
      'append_seconds',
      'from an append to its commit, on the leader',
      DISK_SECONDS,
    )
    part.sampledCounter('committed_appends_total', 'appends that this node committed as leader', [], put =>
      put(this.appends),
    )
    part.sampledCounter('committed_bytes_total', 'redo that this node committed as leader', [], put =>
      put(this.appendedBytes),
    )
    part.sampledGauge('role_info', '1 for the role that the node has', ['role'], put =>
      put(1, node.status().role),
    )
    part.sampledGauge('raft_term', 'term of the cell', [], put => put(node.status().term))
    part.sampledGauge('log_entries', 'ends of the log: last, flushed, committed, applied', ['end'], put => {
      const { lastIndex, flushedIndex, commitIndex, appliedIndex } = node.status()
      put(lastIndex, 'last')
      put(flushedIndex, 'flushed')
      put(commitIndex, 'committed')
      put(appliedIndex, 'applied')
    })
    part.sampledGauge(
      'peer_lag_entries',
      'entries that a member does not have yet; on the leader',
      ['peer'],
      put => {
        const { role, lastIndex, members, nodeId } = node.status()
        if (role !== 'leader') return
        for (const member of members)
          if (member.nodeId !== nodeId) put(Math.max(0, lastIndex - member.matchIndex), member.nodeId)
      },
    )
    part.sampledGauge('disk_bytes', 'bytes of the log on disk', [], put => put(node.status().diskBytes))
    part.sampledCounter('log_scrubbed_bytes_total', 'bytes of the log read to look for damage', [], put =>
      put(node.logStats?.scrubbedBytes ?? 0),
    )
    part.sampledCounter('log_scrub_passes_total', 'times that the whole log was looked through', [], put =>
      put(node.logStats?.scrubPasses ?? 0),
    )
    part.sampledCounter('log_damages_found_total', 'files of the log that did not read back', [], put =>
      put(node.logStats?.damagesFound ?? 0),
    )
    part.sampledCounter('log_damages_repaired_total', 'files of the log that were repaired', [], put =>
      put(node.logStats?.damagesRepaired ?? 0),
    )
    part.sampledGauge('log_damaged_files', 'files of the log that do not read back at present', [], put =>
      put(node.logStats?.damagedFiles ?? 0),
    )
    part.sampledCounter('small_files_repaired_total', 'damaged small files written anew', [], put =>
      put(node.logStats?.smallFilesRepaired ?? 0),
    )
    part.sampledGauge('read_only_nodes', '1 while this node takes no appends: its disk is full', [], put =>
      put(node.status().writable ? 0 : 1),
    )
    part.sampledGauge(
      'leader_silent_seconds',
      'time since this node last heard from a leader; 0 on the leader',
      [],
      put => {
        const { role, leaderSilentMs } = node.status()
        if (role === 'leader') put(0)
        else if (leaderSilentMs !== undefined) put(leaderSilentMs / 1000)
      },
    )
    part.sampledGauge('backup_lag_bytes', 'redo committed and not backed up; on the leader', [], put => {
      const lag = node.backupLagBytes
      if (lag !== undefined) put(lag)
    })
    part.sampledGauge('backup_failing_nodes', '1 while the backup fails; on the leader', [], put => {
      if (node.backupLagBytes !== undefined) put(node.backupProblem === '' ? 0 : 1)
    })
    part.sampledGauge('cell_timelines', 'timelines of the cell', [], put => put(node.status().timelines))
  }

  appendBegun(): number {
    return this.isOn ? performance.now() : 0
  }

  appendDone(begun: number, bytes: number): void {
    this.appends++
    this.appendedBytes += bytes
    if (this.isOn) this.appendSeconds.observe((performance.now() - begun) / 1000)
  }
}

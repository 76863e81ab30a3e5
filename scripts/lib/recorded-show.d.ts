/** The recorded log that `npm start` plays where there is no MariaDB. */
export type RecordedShow = {
  /** A datadir at rest; the redo follows its last checkpoint. */
  baseDatadir: string
  /** An ib_logfile0 of 16 MiB that never wrapped, cut after its last record. */
  redoFile: string
  /** The InnoDB files after the clean shutdown at `story.endLsn`. */
  finalDatadir: string
  story: {
    mariadb: string
    /** Moments in order of their LSNs, with what SQL showed then. */
    moments: { what: string; lsn: number; order42: string; orders: number; ordersTotal: string }[]
    endLsn: number
    /** The tablespace and leaf page of shop.orders where order 42 lies. */
    orders: { space: number; page: number }
  }
}

export function unpackShow(directory: string): RecordedShow

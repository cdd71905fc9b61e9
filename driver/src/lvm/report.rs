//! Reads `lvs` reports in JSON.
//!
//! **Invariant.** A row that cannot be read makes the whole report an error: a skipped row would be a vanished volume.

use std::collections::BTreeSet;

use serde::Deserialize;

/// The columns of a report.
pub const FIELDS: &str = "vg_name,vg_uuid,vg_missing_pv_count,lv_name,lv_uuid,lv_size,lv_tags";

/// One logical volume of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The volume group's name.
    pub vg: String,
    /// The volume group's UUID.
    pub vg_uuid: String,
    /// How many of its physical volumes are missing.
    pub missing_pvs: u64,
    /// The volume's name, without the brackets of hidden ones.
    pub lv: String,
    /// The volume's UUID.
    pub uuid: String,
    /// The volume's size in bytes.
    pub size: u64,
    /// The volume's tags.
    pub tags: BTreeSet<String>,
}

/// A report that does not say what it should.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// It is not the JSON that lvm documents.
    #[error("lvm's report is not understood")]
    Json(#[from] serde_json::Error),
    /// A number that is none.
    #[error("lvm's report says {field} is {value:?}, which is not a number")]
    Number {
        /// The column.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

#[derive(Deserialize)]
struct Document {
    report: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    lv: Vec<RawRow>,
}

/// Unknown columns are tolerated, missing ones are not.
#[derive(Deserialize)]
struct RawRow {
    vg_name: String,
    vg_uuid: String,
    vg_missing_pv_count: Number,
    lv_name: String,
    lv_uuid: String,
    lv_size: Number,
    lv_tags: String,
}

/// `json` writes numbers as strings, newer formats as numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

impl Number {
    fn read(self, field: &'static str) -> Result<u64, ReportError> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Text(value) => value.parse().map_err(|_| ReportError::Number { field, value }),
        }
    }
}

/// Reads a whole report.
///
/// # Errors
/// [`ReportError`].
pub fn parse(json: &[u8]) -> Result<Vec<Row>, ReportError> {
    // lvm 2.03.16 writes raw control characters into strings.
    let clean: Vec<u8> = json.iter().map(|b| if *b < 0x20 { b' ' } else { *b }).collect();
    let document: Document = serde_json::from_slice(&clean)?;
    document.report.into_iter().flat_map(|report| report.lv).map(row).collect()
}

fn row(raw: RawRow) -> Result<Row, ReportError> {
    Ok(Row {
        vg: raw.vg_name,
        vg_uuid: raw.vg_uuid,
        missing_pvs: raw.vg_missing_pv_count.read("vg_missing_pv_count")?,
        lv: raw.lv_name.trim_start_matches('[').trim_end_matches(']').to_owned(),
        uuid: raw.lv_uuid,
        size: raw.lv_size.read("lv_size")?,
        tags: raw.lv_tags.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: &str = r#"{"vg_name":"quarry","vg_uuid":"u","vg_missing_pv_count":"0","lv_name":"[lvol0_pmspare]",
        "lv_uuid":"x","lv_size":"4194304","lv_tags":"a,b","later":"?"}"#;

    #[test]
    fn hidden_volumes_tags_and_newer_number_forms_are_read() {
        let json = format!(r#"{{"report":[{{"lv":[{ROW}]}}],"log":[]}}"#).replace("\"4194304\"", "4194304");
        let rows = parse(json.as_bytes()).unwrap();
        assert_eq!((rows[0].lv.as_str(), rows[0].size, rows[0].tags.len()), ("lvol0_pmspare", 4_194_304, 2));
        assert_eq!(parse(br#"{"report":[{"lv":[]}]}"#).unwrap(), []);
    }

    #[test]
    fn a_row_that_cannot_be_read_fails_the_report() {
        let json = format!(r#"{{"report":[{{"lv":[{ROW},{{"vg_name":"quarry"}}]}}]}}"#);
        assert!(matches!(parse(json.as_bytes()), Err(ReportError::Json(_))));
        let json = format!(r#"{{"report":[{{"lv":[{ROW}]}}]}}"#).replace("4194304", "4m");
        assert!(matches!(parse(json.as_bytes()), Err(ReportError::Number { field: "lv_size", .. })));
        assert!(parse(b"{\"report\":[{\"lv\":").is_err());
    }
}

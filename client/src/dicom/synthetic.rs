//! Synthetic studies: a CT series of a phantom and a large multi-frame, valid enough for any DICOM tool to open.
//!
//! **Invariants.** No real patient's data. The same [`Recipe`] gives the same bytes. Pixels are noisy on purpose, so that no
//! layer can gain by compressing them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// Distinguishes studies: part of every UID.
    pub seed: u64,
    /// Slices of the CT series, 512 × 512 × 16 bit each (512 KiB).
    pub slices: u32,
    /// Frames of one multi-frame instance (512 KiB each); none when 0.
    pub frames: u32,
}

const ROWS: u16 = 512;
const COLUMNS: u16 = 512;
const PIXELS: usize = 512 * 512;

/// Writes the study into `dir` (made if needed) and returns the paths, in order. `progress` is called after each file.
pub fn write_study(dir: &Path, recipe: Recipe, mut progress: impl FnMut(u64)) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(dir)?;
    let mut paths = Vec::new();
    for number in 1..=recipe.slices {
        let path = dir.join(format!("ct-{number:04}.dcm"));
        write(&path, ct_slice(recipe, number), uids::CT_IMAGE_STORAGE, &instance_uid(recipe, 1, number))?;
        progress(fs::metadata(&path)?.len());
        paths.push(path);
    }
    if recipe.frames > 0 {
        let path = dir.join("multi-frame.dcm");
        let class = uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE;
        write(&path, multi_frame(recipe), class, &instance_uid(recipe, 2, 1))?;
        progress(fs::metadata(&path)?.len());
        paths.push(path);
    }
    Ok(paths)
}

/// UIDs under 2.25 (`SPEC: PS3.5 §B.2`): a number that nobody registers.
pub fn study_uid(recipe: Recipe) -> String {
    format!("2.25.{}", 7_000_000_000_000_u64.saturating_add(recipe.seed))
}

fn series_uid(recipe: Recipe, series: u32) -> String {
    format!("{}{series:02}", study_uid(recipe))
}

fn instance_uid(recipe: Recipe, series: u32, number: u32) -> String {
    format!("{}{number:05}", series_uid(recipe, series))
}

fn write(path: &Path, object: InMemDicomObject, class: &str, instance: &str) -> anyhow::Result<()> {
    let meta = FileMetaTableBuilder::new()
        .transfer_syntax(uids::EXPLICIT_VR_LITTLE_ENDIAN)
        .media_storage_sop_class_uid(class)
        .media_storage_sop_instance_uid(instance);
    Ok(object.with_meta(meta)?.write_to_file(path)?)
}

fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: impl Into<PrimitiveValue>) {
    object.put(DataElement::new(tag, vr, value.into()));
}

fn common(recipe: Recipe, series: u32, number: u32, class: &str, modality: &str) -> InMemDicomObject {
    let mut object = InMemDicomObject::new_empty();
    let o = &mut object;
    put(o, tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 192");
    put(o, tags::SOP_CLASS_UID, VR::UI, class);
    put(o, tags::SOP_INSTANCE_UID, VR::UI, instance_uid(recipe, series, number));
    put(o, tags::STUDY_DATE, VR::DA, "20260105");
    put(o, tags::CONTENT_DATE, VR::DA, "20260105");
    put(o, tags::STUDY_TIME, VR::TM, "101500");
    put(o, tags::CONTENT_TIME, VR::TM, "101500");
    put(o, tags::ACCESSION_NUMBER, VR::SH, format!("DEMO{}", recipe.seed % 1_000_000));
    put(o, tags::MODALITY, VR::CS, modality);
    put(o, tags::MANUFACTURER, VR::LO, "pacsvault");
    put(o, tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
    put(o, tags::STUDY_DESCRIPTION, VR::LO, "Synthetic phantom");
    put(o, tags::PATIENT_NAME, VR::PN, "Phantom^Demo");
    put(o, tags::PATIENT_ID, VR::LO, format!("PHANTOM-{}", recipe.seed % 1_000_000));
    put(o, tags::PATIENT_BIRTH_DATE, VR::DA, "19700101");
    put(o, tags::PATIENT_SEX, VR::CS, "O");
    put(o, tags::STUDY_INSTANCE_UID, VR::UI, study_uid(recipe));
    put(o, tags::SERIES_INSTANCE_UID, VR::UI, series_uid(recipe, series));
    put(o, tags::STUDY_ID, VR::SH, "1");
    put(o, tags::SERIES_NUMBER, VR::IS, series.to_string());
    put(o, tags::INSTANCE_NUMBER, VR::IS, number.to_string());
    put(o, tags::SAMPLES_PER_PIXEL, VR::US, PrimitiveValue::from(1_u16));
    put(o, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    put(o, tags::ROWS, VR::US, PrimitiveValue::from(ROWS));
    put(o, tags::COLUMNS, VR::US, PrimitiveValue::from(COLUMNS));
    put(o, tags::BITS_ALLOCATED, VR::US, PrimitiveValue::from(16_u16));
    put(o, tags::BITS_STORED, VR::US, PrimitiveValue::from(16_u16));
    put(o, tags::HIGH_BIT, VR::US, PrimitiveValue::from(15_u16));
    object
}

fn ct_slice(recipe: Recipe, number: u32) -> InMemDicomObject {
    let mut object = common(recipe, 1, number, uids::CT_IMAGE_STORAGE, "CT");
    let o = &mut object;
    let frame_of_reference = series_uid(recipe, 9);
    put(
        o,
        tags::IMAGE_TYPE,
        VR::CS,
        PrimitiveValue::Strs(["ORIGINAL", "PRIMARY", "AXIAL"].map(str::to_owned).to_vec().into()),
    );
    put(o, tags::SERIES_DESCRIPTION, VR::LO, "Axial phantom");
    put(o, tags::BODY_PART_EXAMINED, VR::CS, "HEAD");
    put(o, tags::SLICE_THICKNESS, VR::DS, "1.0");
    put(o, tags::KVP, VR::DS, "120");
    put(o, tags::PATIENT_POSITION, VR::CS, "HFS");
    put(o, tags::ACQUISITION_NUMBER, VR::IS, "1");
    put(o, tags::IMAGE_POSITION_PATIENT, VR::DS, format!("-128\\-128\\{number}"));
    put(o, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\0\\1\\0");
    put(o, tags::FRAME_OF_REFERENCE_UID, VR::UI, frame_of_reference);
    put(o, tags::POSITION_REFERENCE_INDICATOR, VR::LO, "");
    put(o, tags::PIXEL_SPACING, VR::DS, "0.5\\0.5");
    put(o, tags::PIXEL_REPRESENTATION, VR::US, PrimitiveValue::from(1_u16));
    put(o, tags::RESCALE_INTERCEPT, VR::DS, "0");
    put(o, tags::RESCALE_SLOPE, VR::DS, "1");
    put(o, tags::WINDOW_CENTER, VR::DS, "40");
    put(o, tags::WINDOW_WIDTH, VR::DS, "400");
    put(o, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(pixels(recipe.seed, number).into()));
    object
}

fn multi_frame(recipe: Recipe) -> InMemDicomObject {
    let class = uids::MULTI_FRAME_GRAYSCALE_WORD_SECONDARY_CAPTURE_IMAGE_STORAGE;
    let mut object = common(recipe, 2, 1, class, "OT");
    let o = &mut object;
    put(o, tags::SERIES_DESCRIPTION, VR::LO, "Multi-frame phantom");
    put(o, tags::IMAGE_TYPE, VR::CS, PrimitiveValue::Strs(["DERIVED", "SECONDARY"].map(str::to_owned).to_vec().into()));
    put(o, tags::BODY_PART_EXAMINED, VR::CS, "HEAD");
    put(o, tags::PATIENT_ORIENTATION, VR::CS, "");
    put(o, tags::CONVERSION_TYPE, VR::CS, "SYN");
    put(o, tags::BURNED_IN_ANNOTATION, VR::CS, "NO");
    put(o, tags::NUMBER_OF_FRAMES, VR::IS, recipe.frames.to_string());
    put(o, tags::FRAME_INCREMENT_POINTER, VR::AT, PrimitiveValue::Tags(vec![tags::FRAME_TIME].into()));
    put(o, tags::FRAME_TIME, VR::DS, "40");
    put(o, tags::PIXEL_REPRESENTATION, VR::US, PrimitiveValue::from(0_u16));
    put(o, tags::RESCALE_INTERCEPT, VR::DS, "0");
    put(o, tags::RESCALE_SLOPE, VR::DS, "1");
    put(o, tags::RESCALE_TYPE, VR::LO, "US");
    put(o, tags::PRESENTATION_LUT_SHAPE, VR::CS, "IDENTITY");
    let frames: Vec<u16> = (1..=recipe.frames).flat_map(|frame| pixels(recipe.seed ^ 0x5eed, frame)).collect();
    put(o, tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(frames.into()));
    object
}

/// A disc of tissue with a ring of bone around it, in Hounsfield units, and noise (splitmix64, Steele et al. 2014).
fn pixels(seed: u64, number: u32) -> Vec<u16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(number);
    let mut noise = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let radius = 180 + i64::from(number % 40);
    let mut pixels = Vec::with_capacity(PIXELS);
    for y in -256_i64..256 {
        for x in -256_i64..256 {
            let distance = x * x + y * y;
            let tissue: i16 = if distance < (radius - 12) * (radius - 12) {
                40
            } else if distance < radius * radius {
                900
            } else {
                -1000
            };
            let jitter = i16::try_from(noise() % 61).unwrap_or(0) - 30;
            pixels.push((tissue + jitter).cast_unsigned());
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dicom::attributes;

    #[test]
    fn a_synthetic_study_describes_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let recipe = Recipe { seed: 42, slices: 2, frames: 3 };
        let paths = write_study(dir.path(), recipe, |_| {}).expect("written");
        assert_eq!(paths.len(), 3);
        let tenant = "main".parse().expect("a tenant");
        for path in &paths {
            assert!(attributes::looks_like_dicom(path).expect("readable"));
            let described = attributes::describe(path, &tenant).expect("described");
            assert_eq!(described.key.study.as_str(), "2.25.7000000000042");
            let has = |tag: u32| described.attributes.iter().any(|attribute| attribute.tag == tag);
            assert!(has(0x0010_0020) && has(0x0008_0060) && has(0x0002_0010), "{:?}", described.attributes);
        }
        assert!(fs::metadata(&paths[2]).expect("there").len() > 3 * 512 * 1024);
    }

    #[test]
    fn other_files_are_not_taken_for_dicom() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.txt");
        fs::write(&path, "hello").expect("written");
        assert!(!attributes::looks_like_dicom(&path).expect("readable"));
        assert!(attributes::describe(&path, &"main".parse().expect("a tenant")).is_err());
    }
}
